"""The sections of a configuration, each of which checks itself."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import keras
import yaml

from satm_tf.attacks import Attack
from satm_tf.configurable import look_up, unknown_name
from satm_tf.data import Augmentation
from satm_tf.detection import Detector
from satm_tf.evaluation.masking import EFFORT
from satm_tf.experiment.run_folder import FINE_TUNE
from satm_tf.models import ImageClassifier, get_backbone
from satm_tf.training import ClassificationLoss, Scheme
from satm_tf.training.scheme import WEIGHTS

AT_HAND = "at_hand"
"""Instead of the name of published weights: those on this machine, if there are any."""

MOST_BYTES = 100
"""The longest name in bytes: file names add a stage, a suffix and the part of a temporary name."""

_MOST_PIXELS = 2**13
_OPTIMIZERS = {
    name.lower(): kind
    for name, kind in vars(keras.optimizers).items()
    if inspect.isclass(kind)
    and issubclass(kind, keras.optimizers.Optimizer)
    # Not those that wrap others; precision adds the loss scale.
    and "learning_rate" in inspect.signature(kind).parameters
}


def check_name(kind: str, name: Any) -> None:
    """Raises a ValueError for a name that is not valid in files, columns and options."""
    known = isinstance(name, str) and re.fullmatch(r"[^\W\d][\w+-]*", name) and yaml.safe_load(name) == name
    if not known or len(name.encode()) > MOST_BYTES:
        raise ValueError(
            f"The name of {kind} must start with a letter, contain only letters, digits, _, + and -, have at most "
            f"{MOST_BYTES} bytes in UTF-8, and not be a word that YAML reads as a value. Received: {name!r}"
        )


def check_path(path: str, value: str | None) -> None:
    """Raises a ValueError for an empty path, or one of which a part cannot be printed or is too long."""
    if value is None:
        return
    if not value or not value.isprintable() or max(len(part.encode()) for part in Path(value).parts) > 255:
        raise ValueError(
            f"{path} must be a path of printable characters, whose parts have at most 255 bytes. Received: {value!r}"
        )


def _check_number(
    path: str,
    value: Any,
    minimum: float,
    *,
    above: bool = False,
    below: float = math.inf,
    whole: bool = False,
    null: bool = False,
) -> None:
    if value is None and null:
        return
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < minimum or (above and value == minimum):
        kind = "a whole number" if whole else "a finite number"
        bound = f" above {minimum:g}" if above else f" of {minimum:g} or more"
        bound = bound if math.isfinite(minimum) else ""
        raise ValueError(f"{path} must be {kind}{bound}{', or null' if null else ''}. Received: {value!r}")
    if value >= below:
        raise ValueError(f"{path} must be below {below:g}. Received: {value!r}")


def _check_numbers(path: str, section: Any, names: str, minimum: float, **bounds: Any) -> None:
    """Checks fields of a section, whose names are separated by spaces."""
    for name in names.split():
        _check_number(f"{path}.{name}", getattr(section, name), minimum, **bounds)


def make_attack(options: Mapping[str, Any], epsilon: float | None = None) -> Attack:
    """An attack from its name and options as in YAML.

    Args:
        options: `name` and options.
        epsilon: The epsilon if the options have none.

    Raises:
        ValueError: If a name is unknown, or an option is unknown or wrong.
    """
    try:
        return Attack.get({**({} if epsilon is None else {"epsilon": epsilon}), **options})
    except TypeError as error:
        raise ValueError(f"These options are not valid for the attack ({error}). Received: {dict(options)}") from error


@dataclass(frozen=True)
class DataConfig:
    """The images.

    Attributes:
        format: What the folder holds. synthetic_faces first writes a data set in Adience's format there; table is a CSV
            file with the columns path and label; utkface has age and gender in the file names.
        root: The folder of the images. With null, which only synthetic_faces allows, they are written to the run
            folder.
        image_size: Height and width of the networks' input, in pixels.
        table: The CSV file, if the format is table.
        prepared: The folder that satm_tf.prepare packed these images into; null decodes the files themselves.
        variant: Which of Adience's two crops to use.
        exact_labels: Whether to use only labels that are exactly one of Adience's eight groups, as most published
            results do.
        target: What to classify, if the data has both labels.
        fold: The fold to test on, if the data has folds; null draws a test set of size test_share.
        class_names: The classes in order; null takes those found in the data. Adience has its own.
        ordered: Whether class_names are in a meaningful order, as age groups are.
        test_share: Share of the images to test on, if the data has no test split.
        validation_share: Share of the training images used for validation, drawn by subject; for Adience, by the owner
            of the photographs.
        surrogate_share: Share of the training images (of the subjects, where they are known) that the defence never
            sees, for surrogates with `images: share`.
        limit: Use at most this many training images, and validation images in proportion.
        test_limit: Use at most this many test images.
        cache: Whether to keep decoded images in memory (3 bytes per pixel); for small data sets.
        augmentation: Random changes to the clean training images; null makes none.
        num_subjects: Number of subjects, for synthetic_faces.
        images_per_subject: Number of images of each subject, for synthetic_faces.
    """

    format: Literal["synthetic_faces", "adience", "utkface", "idx", "folder", "table"] = "synthetic_faces"
    root: str | None = None
    image_size: int = 48
    table: str | None = None
    prepared: str | None = None
    variant: Literal["aligned", "faces"] = "aligned"
    exact_labels: bool = False
    target: Literal["age", "gender"] = "age"
    fold: int | None = 0
    class_names: list[str] | None = None
    ordered: bool = False
    test_share: float = 0.1
    validation_share: float = 0.1
    surrogate_share: float = 0.0
    limit: int | None = None
    test_limit: int | None = None
    cache: bool = False
    augmentation: Augmentation | None = None
    num_subjects: int = 480
    images_per_subject: int = 5

    def __post_init__(self) -> None:
        _check_numbers("data", self, "image_size num_subjects images_per_subject", 1, whole=True)
        if self.image_size > _MOST_PIXELS:
            raise ValueError(f"data.image_size must be at most {_MOST_PIXELS}. Received: {self.image_size}")
        for name in ("root", "table", "prepared"):
            check_path(f"data.{name}", getattr(self, name))
        _check_numbers("data", self, "limit test_limit", 1, whole=True, null=True)
        _check_numbers("data", self, "fold", 0, whole=True, null=True)
        _check_numbers("data", self, "test_share validation_share surrogate_share", 0, below=1)


@dataclass(frozen=True)
class NetworkConfig:
    """One network: a backbone that is fine-tuned first, or a trained model that is used as it is.

    Attributes:
        backbone: One of satm_tf.models.available_backbones().
        weights: The backbone's starting weights: vggface, imagenet, or the path of an HDF5 file; null is random
            weights. at_hand uses the backbone's published weights if they are already on this machine, and otherwise
            random weights.
        dropout: Dropout rate before the classification layer; null is the backbone's default.
        model: The .keras file of a trained classifier, instead of a backbone.
        input_range: The range of pixel values that the model expects, [lowest, highest]; null is [0, 255].
    """

    backbone: str | None = None
    weights: str | None = None
    dropout: float | None = None
    model: str | None = None
    input_range: tuple[float, float] | None = None

    @property
    def described(self) -> str:
        """A short description."""
        return self.backbone or str(self.model)

    def build(self, num_classes: int, image_size: int, name: str | None = None) -> ImageClassifier:
        """The network before any training.

        Args:
            num_classes: Number of classes, for a backbone; a model has its own.
            image_size: Height and width of the images, likewise.
            name: Its name; None takes the backbone's.

        Raises:
            ValueError: If the weights do not fit the backbone, or the model cannot be wrapped.
            FileNotFoundError: If there is no such model.
        """
        named: dict[str, Any] = {} if name is None else {"name": name}
        if self.backbone is not None:
            return ImageClassifier.from_backbone(
                self.backbone,
                num_classes=num_classes,
                image_shape=(image_size, image_size, 3),
                weights=self.weights_at_hand() if self.weights == AT_HAND else self.weights,
                dropout=self.dropout,
                **named,
            )
        return ImageClassifier.from_keras(str(self.model), input_range=self.input_range or (0, 255), **named)

    def weights_at_hand(self) -> str | None:
        """The name of published weights of the backbone that are on this machine already, if there are any."""
        published = get_backbone(str(self.backbone)).published
        return next((name for name, weights in published.items() if weights.cached.is_file()), None)

    def check(self, path: str, image_size: int) -> None:
        """Checks the fields for images of this size; `path` is the network's in the configuration.

        Raises:
            ValueError: If the backbone is unknown, the images are too small for it, dropout is not a rate, or options
                of a backbone are given with a model.
        """
        if (self.backbone is None) == (self.model is None):
            raise ValueError(f"{path} must have either a backbone or a model. Received: {vars(self)}")
        if self.backbone is None:
            if self.weights is not None or self.dropout is not None:
                raise ValueError(f"{path} is a model, which has its own weights and dropout. Received: {vars(self)}")
            low, high = self.input_range or (0, 255)
            if not low < high:
                raise ValueError(f"{path}.input_range must be [lowest, highest]. Received: {self.input_range}")
            return
        if self.input_range is not None:
            raise ValueError(f"{path}.input_range is for a model, not for a backbone. Received: {self.input_range}")
        minimum = get_backbone(self.backbone).minimum_size
        if image_size < minimum:
            raise ValueError(
                f"{path} needs images of at least {minimum} x {minimum}. Received: data.image_size={image_size}"
            )
        _check_numbers(path, self, "dropout", 0, below=1, null=True)


_RATES = re.compile("(adam_)?beta_[12]|rho|momentum|ema_momentum")
_POSITIVE = ("clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor", "ema_overwrite_frequency")


def _check_optimizer_option(path: str, option: str, default: Any, value: Any) -> None:
    """Checks a number that Keras does not check, but computes NaN with or ignores."""
    if value is None and default is None:
        return
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{path} must be true or false. Received: {value!r}")
    elif isinstance(default, int | float) or option in (*_POSITIVE, "weight_decay"):
        lowest = -math.inf if isinstance(default, int | float) and default < 0 else 0
        below = 1 if _RATES.fullmatch(option) else math.inf
        _check_number(path, value, lowest, above=option in _POSITIVE, below=below, whole=option.endswith("steps"))


@dataclass(frozen=True)
class TrainingConfig:
    """One stage of training.

    Attributes:
        epochs: Maximum number of passes over the training images; 0 does not train.
        batch_size: Number of clean images in a step.
        optimizer: Name of a Keras optimizer.
        learning_rate: The optimizer's learning rate; the initial one if it decays.
        decay: cosine lowers the learning rate to zero over all epochs; null keeps it constant.
        optimizer_options: Other options of the optimizer, such as momentum.
        patience: Stop after this many epochs without a lower validation loss; null never stops early.
        checkpoint_seconds: Seconds of training between checkpoints within an epoch. A killed run resumes from the last
            checkpoint.
    """

    epochs: int = 5
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    decay: Literal["cosine"] | None = None
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    patience: int | None = None
    checkpoint_seconds: float = 300.0

    def check(self, path: str) -> None:
        """Checks the fields; `path` is the stage's in the configuration.

        Raises:
            ValueError: If a number is outside its range, or Keras has no such optimizer or option.
        """
        _check_numbers(path, self, "epochs", 0, whole=True)
        _check_numbers(path, self, "batch_size", 1, whole=True)
        _check_numbers(path, self, "learning_rate", 0, above=True)
        _check_numbers(path, self, "patience", 0, whole=True, null=True)
        _check_numbers(path, self, "checkpoint_seconds", 0)
        if "learning_rate" in self.optimizer_options:
            raise ValueError(
                f"Set the learning rate in {path}.learning_rate, not in the optimizer's options. "
                f"Received: optimizer_options={self.optimizer_options}"
            )
        # By name only: an optimizer has variables, and several workers must connect before TensorFlow creates any.
        kind = look_up("Keras optimizer", str(self.optimizer).lower(), _OPTIMIZERS)
        known = inspect.signature(kind).parameters
        for option, value in self.optimizer_options.items():
            if option not in known:
                raise unknown_name(f"option in {path}.optimizer_options", option, known)
            _check_optimizer_option(f"{path}.optimizer_options.{option}", option, known[option].default, value)

    def make_optimizer(self, steps: int = 1) -> keras.optimizers.Optimizer:
        """The optimizer.

        Args:
            steps: Steps of the whole stage, over which the learning rate decays, if at all.
        """
        rate: Any = self.learning_rate
        if self.decay == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(rate, steps)
        optimizer = keras.optimizers.get(self.optimizer)
        return type(optimizer)(learning_rate=rate, **self.optimizer_options)


@dataclass(frozen=True)
class _SchemeConfig:
    """One way of training the networks, from the shared fine-tuned weights or from another scheme's.

    In addition to the attributes below, it has every field of `satm_tf.training.Scheme`. null keeps the preset's value;
    `domain_adaptation: none` turns domain adaptation off.

    Attributes:
        preset: One of satm_tf.training.SCHEMES; null starts from a scheme's defaults.
        networks: Which of the experiment's networks the scheme trains; null is all.
        starts_from: An earlier scheme whose networks this one continues to train; null starts from the fine-tuned ones.
        epochs: Overrides co_train's number of passes over the training images, so that schemes can have equal cost; 0
            does not train.
        frozen_from: An earlier scheme whose networks are the frozen sources, named frozen_<network>; null uses the
            fine-tuned networks. A list gives several schemes, where fine_tune is the fine-tuned networks; the sources
            are then named <scheme>/<network>.
        sparring: Which of the experiment's networks the sparring partners start from; null is those that the scheme
            trains. Partners are neither saved nor measured.
    """

    preset: str | None = None
    networks: list[str] | None = None
    starts_from: str | None = None
    epochs: int | None = None
    frozen_from: str | list[str] | None = None
    sparring: list[str] | None = None

    @property
    def frozen_origins(self) -> list[str]:
        """The schemes in `frozen_from`."""
        given = self.frozen_from if isinstance(self.frozen_from, list) else [self.frozen_from or FINE_TUNE]
        return [origin for origin in given if origin != FINE_TUNE]

    def scheme(self, attack: Attack) -> Scheme:
        """The described scheme, with an attack (and its epsilon) where it names none.

        Raises:
            ValueError: If a name is unknown or a number out of range.
        """
        given = {name: getattr(self, name) for name in ("preset", *_SCHEME_FIELDS)}
        given = {name: value for name, value in given.items() if value is not None}
        for name, (minimum, whole) in _SCHEME_NUMBERS.items():
            value = given.get(name)
            values = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            )
            for each in values:
                _check_number(name, each, minimum, whole=whole, null=True)
        if given.get("domain_adaptation") == "none":
            given["domain_adaptation"] = None
        own = given.get("attack")
        if own is not None:
            given["attack"] = (
                [make_attack(options, attack.epsilon) for options in own]
                if isinstance(own, list)
                else make_attack(own, attack.epsilon)
                if "name" in own
                else {source: make_attack(options, attack.epsilon) for source, options in own.items()}
            )
        scheme = Scheme.get(given)
        if scheme.attack is None:
            return dataclasses.replace(scheme, attack=attack)
        if own is None and given.get("epsilon") is None:  # A preset's own attacks have the paper's epsilon.
            return dataclasses.replace(scheme, epsilon=attack.epsilon)
        return scheme


_SCHEME_FIELDS = tuple(each.name for each in dataclasses.fields(Scheme))
# The minimum of each number, and whether it must be whole.
_SCHEME_NUMBERS = {
    **dict.fromkeys(("epsilon", "null_share", *WEIGHTS), (0, False)),
    "temperature": (1, False),
    "crafted_once": (0, True),
    **dict.fromkeys(("snapshots", "snapshot_steps"), (1, True)),
}

if TYPE_CHECKING:

    class SchemeConfig(_SchemeConfig):
        """See `_SchemeConfig`."""

        def __init__(self, **fields: Any) -> None: ...

else:
    # With a mapping in the type, the command line can set nested fields.
    _MAPPINGS = {
        "learns_from": str | list[str] | dict[str, Any] | None,
        "attack": dict[str, Any] | list[dict[str, Any]] | None,
        "source_weights": dict[str, float] | None,
        **dict.fromkeys(WEIGHTS, float | list[float] | dict[str, float] | None),
        "adversarial_loss": str | list[str] | dict[str, str] | None,
        "epsilon_schedule": dict[str, Any] | None,
        "domain_adaptation": dict[str, Any] | Literal["none"] | None,
        "batch_norm": str | dict[str, str] | None,
    }
    SchemeConfig = dataclasses.make_dataclass(
        "SchemeConfig",
        [(name, _MAPPINGS.get(name, Any), None) for name in _SCHEME_FIELDS],
        bases=(_SchemeConfig,),
        frozen=True,
        namespace={"__doc__": _SchemeConfig.__doc__, "__module__": __name__},
    )


@dataclass(frozen=True)
class LossConfig:
    """The classification loss.

    Attributes:
        label_smoothing: Share of the target that is spread evenly over all classes.
        class_weights: balanced gives every class of the training images the same weight in total; or a list with a
            weight for each class.
        order_temperature: If classes are ordered, penalises a neighbouring class less; null does not.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | list[float] | None = None
    order_temperature: float | None = None

    def __post_init__(self) -> None:
        weights = None if self.class_weights == "balanced" else self.class_weights
        ClassificationLoss(**{**vars(self), "class_weights": weights})


@dataclass(frozen=True)
class ExportConfig:
    """What to export for serving.

    Attributes:
        scheme: The scheme whose networks to export; null exports nothing.
        networks: Which of its networks to export; null is all.
        folder: The parent folder, with a folder for each model.
        detector: The kind of detector to fit to each of them and to export with it, such as feature_classifier; null
            exports none.
    """

    scheme: str | None = None
    folder: str = "exported_models"
    networks: list[str] | None = None
    detector: str | None = None

    def __post_init__(self) -> None:
        check_path("export.folder", self.folder)
        if self.detector is not None:
            look_up("detector", self.detector, Detector.members)
        if self.detector is not None and self.scheme is None:
            raise ValueError(
                f"A detector is exported with the networks of a scheme: --export.scheme SCHEME. Received: none, and "
                f"export.detector={self.detector!r}"
            )


@dataclass(frozen=True)
class QueriesConfig:
    """Query attacks on the trained networks: Square, from scratch and from the best transferred example.

    Attributes:
        budgets: Numbers of queries per image, such as [50, 100, 1000]; an empty list makes no query attack.
        limit: Number of test images to attack.
    """

    budgets: list[int] = field(default_factory=list)
    limit: int = 100

    def __post_init__(self) -> None:
        for budget in [*self.budgets, self.limit]:
            _check_number("queries.budgets and queries.limit", budget, 1, whole=True)
        if len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"queries.budgets must not repeat a number. Received: {self.budgets}")


@dataclass(frozen=True)
class ChecksConfig:
    """The checks for gradient masking.

    Attributes:
        schemes: The schemes whose networks are checked; null is all.
        limit: Number of test images to check with.
        effort: Options of satm_tf.evaluation.masking_checks: steps, targets, queries.
    """

    schemes: list[str] | None = None
    limit: int = 200
    effort: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_numbers("checks", self, "limit", 1, whole=True)
        for option, value in self.effort.items():
            if option not in EFFORT:
                raise unknown_name("option in checks.effort", option, EFFORT)
            _check_number(f"checks.effort.{option}", value, 1, whole=True)
