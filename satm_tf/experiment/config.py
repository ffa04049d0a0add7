"""The typed configuration, its presets, and how a command line becomes one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from satm_tf.attacks import Attack
from satm_tf.command_line import Parser
from satm_tf.data import Augmentation
from satm_tf.training import Scheme

PRESETS = {path.stem: path for path in Path(str(resources.files("satm_tf.experiment") / "presets")).glob("*.yaml")}


@dataclass(frozen=True)
class DataConfig:
    """The images.

    Attributes:
        format: What lies in the folder; synthetic_faces writes a set in Adience's format there first; table is a CSV
            file with the columns path and label.
        root: The folder. null is allowed for synthetic_faces, which then writes into the run folder.
        image_size: Height and width, in pixels, that the networks see.
        table: The CSV file, where the format is table.
        prepared: Folder into which satm_tf.prepare has packed these images; null decodes the files themselves.
        variant: Which of Adience's two crops.
        target: What to classify, where the data has both.
        fold: The fold that is the test set, where there are folds; null draws one by test_share.
        class_names: The classes in their order; null takes those that are found. Adience has its own.
        ordered: Whether the class_names given are in a meaningful order, as age groups are.
        test_share: Share of the images to test on, where the data does not say which.
        validation_share: Share of the training images (Adience: of the subjects) kept for validation.
        limit: Use at most this many training images, and validation images in proportion.
        test_limit: Use at most this many test images.
        cache: Whether decoded images stay in memory, 3 bytes a pixel; for small sets.
        augmentation: Random changes to the clean training images; null leaves them as they are.
        num_subjects: Subjects to draw, for synthetic_faces.
        images_per_subject: Images of each subject, for synthetic_faces.
    """

    format: Literal["synthetic_faces", "adience", "idx", "folder", "table"] = "synthetic_faces"
    root: str | None = None
    image_size: int = 48
    table: str | None = None
    prepared: str | None = None
    variant: Literal["aligned", "faces"] = "aligned"
    target: Literal["age", "gender"] = "age"
    fold: int | None = 0
    class_names: list[str] | None = None
    ordered: bool = False
    test_share: float = 0.1
    validation_share: float = 0.1
    limit: int | None = None
    test_limit: int | None = None
    cache: bool = False
    augmentation: Augmentation | None = None
    num_subjects: int = 480
    images_per_subject: int = 5


@dataclass(frozen=True)
class NetworkConfig:
    """One network.

    Attributes:
        backbone: One of satm_tf.models.available_backbones().
        weights: What the backbone starts from: vggface, imagenet, the path of an HDF5 file; null is a fresh start.
        dropout: Rate of the dropout before the classification layer; null takes the backbone's own.
    """

    backbone: str
    weights: str | None = None
    dropout: float | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """One stage of training.

    Attributes:
        epochs: Passes over the training images, at most.
        batch_size: Clean images in a step.
        optimizer: Name of a Keras optimizer.
        learning_rate: Its learning rate, at the start if it decays.
        decay: cosine lets the learning rate fall to zero over all epochs; null keeps it.
        optimizer_options: Its other options, such as momentum.
        patience: Stop after this many epochs without a lower validation loss; null never stops early.
        checkpoint_seconds: How long to train before saving within an epoch, for a run that is killed to go on from.
    """

    epochs: int = 5
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    decay: Literal["cosine"] | None = None
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    patience: int | None = None
    checkpoint_seconds: float = 300.0


def make_attack(options: Mapping[str, Any], epsilon: float | None = None) -> Attack:
    """An attack from its name and options as YAML gives them.

    Args:
        options: `name` and options.
        epsilon: For options that have none.
    """
    return Attack.get({**({} if epsilon is None else {"epsilon": epsilon}), **options})


@dataclass(frozen=True)
class SchemeConfig:
    """One way of training the networks, from the same fine-tuned weights as every other, or on from another scheme's.

    What is null is as the preset has it; satm_tf.training.Scheme says what each means.

    Attributes:
        preset: One of satm_tf.training.SCHEMES; null starts from a scheme's defaults.
        networks: Which of the experiment's networks it trains; null is all.
        learns_from: others, itself, frozen, nobody; or several; or for each network one or more of these words or
            names. The frozen networks are known as frozen_<name>.
        starts_from: The scheme, trained before, whose networks it goes on with; null takes the fine-tuned ones.
        epochs: Passes over the training images in place of co_train's, so that schemes can be given equal work.
        frozen_from: The scheme, trained before, whose networks are the frozen ones; null takes the fine-tuned ones.
        attack: The attack in training, by name, with its options; or one for each of itself, others and frozen.
        all_sources: Whether a step uses every source of a network, not the one whose turn it is.
        epsilon: Radius of the attacks in training; null takes the attack's own, or that of the experiment's attack.
        epsilon_schedule: uniform or ramped, by name, with its options.
        crafting_mode: inference or training.
        clean_weight: Weight of the clean loss.
        adversarial_weight: r_adv, the weight of the adversarial loss.
        adversarial_loss: cross_entropy or divergence.
        peer_weight: Weight of the divergence from the peers' answers.
        domain_adaptation: domain_adversarial, domain_discriminative or unified_embedding, by name, with its options;
            or one for each of some networks; none goes without.
        batch_norm: shared, separate, frozen or auxiliary, for all networks or each of some.
    """

    preset: str | None = None
    networks: list[str] | None = None
    learns_from: str | list[str] | dict[str, str | list[str]] | None = None
    starts_from: str | None = None
    epochs: int | None = None
    frozen_from: str | None = None
    attack: dict[str, Any] | None = None
    all_sources: bool | None = None
    epsilon: float | None = None
    epsilon_schedule: dict[str, Any] | None = None
    crafting_mode: str | None = None
    clean_weight: float | None = None
    adversarial_weight: float | None = None
    adversarial_loss: str | None = None
    peer_weight: float | None = None
    domain_adaptation: dict[str, Any] | Literal["none"] | None = None
    batch_norm: str | dict[str, str] | None = None

    def scheme(self, attack: Attack) -> Scheme:
        """What this describes, with an attack (and its epsilon) for what describes none.

        Raises:
            ValueError: If a name is unknown or a number out of range.
        """
        given = {key: value for key, value in vars(self).items() if value is not None and key in _SCHEME_FIELDS}
        if given.get("domain_adaptation") == "none":
            given["domain_adaptation"] = None
        if self.attack is not None:
            one = "name" in self.attack
            given["attack"] = (
                make_attack(self.attack, attack.epsilon)
                if one
                else {source: make_attack(options, attack.epsilon) for source, options in self.attack.items()}
            )
        scheme = Scheme.get(given)
        if scheme.attack is None:
            return dataclasses.replace(scheme, attack=attack)
        if self.attack is None and self.epsilon is None:  # A preset's own attacks have the paper's epsilon.
            return dataclasses.replace(scheme, epsilon=attack.epsilon)
        return scheme


@dataclass(frozen=True)
class LossConfig:
    """What a network loses on its answers.

    Attributes:
        label_smoothing: Share of the target that is spread over all classes alike.
        class_weights: balanced lets every class of the training images count alike; or a weight for each class.
        order_temperature: Makes a neighbouring class a lesser error, where classes are ordered; null does not.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | list[float] | None = None
    order_temperature: float | None = None


@dataclass(frozen=True)
class ExportConfig:
    """What is exported for serving.

    Attributes:
        scheme: The scheme whose networks are exported; null exports nothing.
        folder: The folder that holds a folder for each model.
    """

    scheme: str | None = None
    folder: str = "exported_models"


@dataclass(frozen=True)
class ChecksConfig:
    """The checks of whether networks only hide their gradients.

    Attributes:
        schemes: The schemes whose networks are checked; null checks all.
        limit: How many test images to check with.
        effort: Options of satm_tf.evaluation.masking_checks: steps, targets, queries.
    """

    schemes: list[str] | None = None
    limit: int = 200
    effort: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """A whole experiment: from images on disk to defended networks and the tables that compare them.

    Attributes:
        name: Name of the experiment.
        run_dir: The run folder; null takes runs/<name>.
        seed: The one seed from which everything random follows.
        data: The images.
        networks: The networks that are defended, by name.
        holdouts: Networks that no scheme ever learns from, by name; they attack at the end.
        loss: What a network loses on its answers, in every stage.
        precision: Number formats: float32, mixed_bfloat16, mixed_float16; auto takes what this machine does well.
        strategy: Devices: none is one; mirrored all of this machine; multi_worker all machines that TF_CONFIG names;
            network_per_device one for each network.
        fine_tune: How each network is trained on clean images first.
        co_train: How each scheme then goes on.
        attack: The attack in training, by name, with its options, for schemes that name no other.
        schemes: The ways of training that are compared, by name.
        evaluation_attacks: The attacks in the tables, by name; without an epsilon they take the training attack's.
        checks: Whether networks only hide their gradients.
        export: What is exported for serving.
    """

    name: str = "experiment"
    run_dir: str | None = None
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    networks: dict[str, NetworkConfig] = field(default_factory=dict)
    holdouts: dict[str, NetworkConfig] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"] = "float32"
    strategy: Literal["none", "mirrored", "multi_worker", "network_per_device"] = "none"
    fine_tune: TrainingConfig = field(default_factory=TrainingConfig)
    co_train: TrainingConfig = field(default_factory=TrainingConfig)
    attack: dict[str, Any] = field(default_factory=dict)
    schemes: dict[str, SchemeConfig] = field(default_factory=dict)
    evaluation_attacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    export: ExportConfig = field(default_factory=ExportConfig)


def scheme_networks(config: Config, scheme: str) -> list[str]:
    """The networks that a scheme trains."""
    return list(config.schemes[scheme].networks or config.networks)


def stage_training(config: Config, stage: str) -> TrainingConfig:
    """How a stage, `fine_tune/<network>` or `co_train/<scheme>`, is trained."""
    kind, name = stage.split("/", maxsplit=1)
    if kind == "fine_tune":
        return config.fine_tune
    epochs = config.schemes[name].epochs
    return config.co_train if epochs is None else dataclasses.replace(config.co_train, epochs=epochs)


def evaluation_attacks(config: Config) -> dict[str, Attack]:
    """The attacks of the tables, by name.

    Raises:
        ValueError: If a name or an option is unknown.
    """
    epsilon = make_attack(config.attack).epsilon
    return {name: make_attack(options, epsilon) for name, options in config.evaluation_attacks.items()}


_SCHEME_FIELDS = {"preset", *(field.name for field in dataclasses.fields(Scheme))}


def parser(prog: str = "satm-tf train") -> Parser:
    """The options of a configuration: `--config`, and every field at any depth as an option of its own."""
    result = Parser(
        prog=prog,
        description="Any field of the configuration can be set, at any depth: --data.root FOLDER, "
        "--networks.vgg.dropout 0.3, --schemes.satm.domain_adaptation none. Without --config the preset is quickstart.",
    )
    result.add_config(PRESETS)
    result.add_class_arguments(Config)
    return result


def from_arguments(arguments: Sequence[str], prog: str = "satm-tf train") -> Config:
    """The configuration that a command line describes.

    Args:
        arguments: As in `sys.argv[1:]`. Without `--config` the preset is quickstart.
        prog: Name of the program in messages.

    Raises:
        SystemExit: If an argument is wrong; the message is printed.

    Example:
        >>> from_arguments(["--config", "fashion_mnist", "--data.root", "fashion"]).data.root
        'fashion'
    """
    return parse(parser(prog), arguments)[0]


def parse(options: Parser, arguments: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """The configuration that a command line describes, and what it says beside it.

    Args:
        options: As `parser` gives it, to which options may have been added.
        arguments: As in `sys.argv[1:]`.

    Raises:
        SystemExit: If an argument is wrong; the message is printed.
    """
    arguments = list(arguments)
    if not any(argument == "--config" or argument.startswith("--config=") for argument in arguments):
        arguments = ["--config", "quickstart", *arguments]
    values = options.instantiate(options.parse_args(arguments)).as_dict()
    described = {each.name: values.pop(each.name) for each in dataclasses.fields(Config)}
    return Config(**described), values
