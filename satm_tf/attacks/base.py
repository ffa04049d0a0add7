"""The parts that all attacks share: bounds, ball, label source, targeting, batching, seed, configuration, names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from satm_tf.attacks.losses import EVADING, LOSSES, cross_entropy, evading_margin, strongest_others
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import Model, logits_of, refuse_probabilities
from satm_tf.configurable import Configurable, look_up, serialize

__all__ = ["LABEL_SOURCES", "Attack", "LabelSource", "Model", "Outcome", "available_attacks", "get", "serialize"]

# Rounding that float32 arithmetic may add to images in [0, 1].
_ROUNDING = 1e-6
_RANGE = "Attacks take images in [0, 1]; divide 8-bit images by 255. Received values from"


@dataclass(frozen=True)
class LabelSource:
    """Which class an attack moves away from or toward.

    Attributes:
        choose: A function of the labels `[batch]` and of a function that returns logits `[batch, classes]`, called only
            if needed. Returns int32 classes `[batch]`.
        direction: +1.0 ascends the loss of that class (away from it), -1.0 descends it (toward it).
    """

    choose: Callable[[tf.Tensor, Callable[[], tf.Tensor]], tf.Tensor]
    direction: float


LABEL_SOURCES = {
    "label": LabelSource(lambda labels, logits: labels, +1.0),
    "predicted": LabelSource(lambda labels, logits: tf.argmax(logits(), -1, tf.int32), +1.0),
    "least_likely": LabelSource(lambda labels, logits: tf.argmin(logits(), -1, tf.int32), -1.0),
    "target": LabelSource(lambda labels, logits: labels, -1.0),
}


class Outcome(NamedTuple):
    """The result of an attack on a batch.

    Attributes:
        images: float32 `[batch, height, width, channels]`, the adversarial images.
        before: int32 `[batch]`, the classes predicted for the clean images.
        after: int32 `[batch]`, the classes predicted for the adversarial images.
        success: bool `[batch]`: whether the prediction has left the class that the attack moves away from, or reached
            the class that it moves toward.
        distortion: float32 `[batch]`, the perturbations in the attack's norm.
    """

    images: tf.Tensor
    before: tf.Tensor
    after: tf.Tensor
    success: tf.Tensor
    distortion: tf.Tensor


@dataclass(frozen=True, kw_only=True)
class Attack(Configurable, kind="attack"):
    """An immutable configuration that turns a batch of images and a network into adversarial images.

    A call can be traced inside a `tf.function` and does not change the network: it runs in inference mode and watches
    only the images. No gradient flows through the result, which lies inside [0, 1] and within `epsilon` of the images.
    A subclass implements `perturb` and inherits the rest; `class Mine(Attack, name="mine")` makes it available to
    `get`.

    Outside a `tf.function`, a call runs eagerly, at less than half the speed; use `compiled` there. AutoGraph does not
    convert what a call runs, because that takes most of the time of tracing: for control flow on tensors, `perturb` and
    the network use `tf.where`, `tf.cond` and `tf.while_loop`, or a `tf.function` of their own.

    Attributes:
        epsilon: The largest norm of a perturbation, in units of images in [0, 1]; 16/256, not 16.
        norm: "linf" or "l2".
        label_source: "label" increases the loss of the given labels; "predicted" that of the network's own prediction;
            "least_likely" decreases the loss of the least likely class; "target" that of the given labels.
        seed: Seed of an attack that draws random numbers, if a call does not pass one.

    Raises:
        ValueError: If epsilon is negative, or above 1 in L-infinity, if another number is below its least value, or if
            the norm or label source is unknown.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Brighter(Attack, name="brighter"):
        ...     def perturb(self, model, images, labels, epsilon, seed):
        ...         return images + epsilon
        >>> adversarial = get("brighter", epsilon=0.1)(network, images, labels)
    """

    norms: ClassVar[Sequence[str]] = ("linf", "l2")
    label_sources: ClassVar[Sequence[str]] = tuple(LABEL_SOURCES)
    bounded: ClassVar[bool] = True
    at_least: ClassVar[Mapping[str, float]] = {}

    epsilon: float
    norm: str = "linf"
    label_source: str = "label"
    seed: int = 0

    def __post_init__(self) -> None:
        look_up("norm", self.norm, NORMS)
        if self.norm not in self.norms:
            raise ValueError(
                f"Attack {self.name!r} is defined for norm {_either(self.norms)} only. Received: norm={self.norm!r}"
            )
        look_up("label source", self.label_source, LABEL_SOURCES)
        if self.label_source not in self.label_sources:
            raise ValueError(
                f"Attack {self.name!r} takes label source {_either(self.label_sources)} only. "
                f"Received: label_source={self.label_source!r}"
            )
        for option, least in self.at_least.items():
            if not getattr(self, option) >= least:
                raise ValueError(f"{option} must be at least {least}. Received: {option}={getattr(self, option)}")
        largest = 1.0 if self.norm == "linf" else math.inf
        uncapped = self.epsilon == math.inf and not self.bounded
        if not uncapped and not (0 <= self.epsilon <= largest and math.isfinite(self.epsilon)):
            hint = (
                f"; did you mean {self.epsilon:g}/256 = {self.epsilon / 256:g}?" if 1 < self.epsilon < math.inf else "."
            )
            raise ValueError(
                f"epsilon must be non-negative, in units of images in [0, 1]{hint} Received: epsilon={self.epsilon}"
            )

    @tf.autograph.experimental.do_not_convert
    def __call__(
        self,
        model: Model,
        images: tf.Tensor,
        labels: tf.Tensor,
        *,
        epsilon: tf.Tensor | float | None = None,
        seed: tf.Tensor | int | None = None,
    ) -> tf.Tensor:
        """Crafts adversarial images.

        Args:
            model: Keras model (or a callable that takes `training`) from images to logits `[batch, classes]`; wrap one
                that gives probabilities in `satm_tf.models.FromProbabilities`, and load one from a file with
                `satm_tf.models.load_model`.
            images: Floats `[batch, height, width, channels]` in [0, 1].
            labels: Integers `[batch]`: true classes, or the targets if the label source is "target".
            epsilon: Replaces the attack's epsilon: a scalar, or one per image `[batch]`.
            seed: Replaces the attack's seed: an integer, or two `[2]`, as stateless random ops take.

        Returns:
            Adversarial images, float32 like `images`.

        Raises:
            ValueError: If the images do not lie in [0, 1], eagerly; if the model gives probabilities; or if no gradient
                reaches the images.
            tf.errors.InvalidArgumentError: If the images do not lie in [0, 1], inside your own `tf.function`.
        """
        images, labels, radius, key = self._arguments(model, images, labels, epsilon, seed)
        images = _inside_range(images)
        perturbed = self.perturb(model, images, labels, radius, key)
        return tf.stop_gradient(self.project(perturbed, images, radius))

    def _arguments(
        self, model: Model, images: Any, labels: Any, epsilon: Any, seed: Any
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """A call's arguments as `perturb` takes them, and a check that the model gives logits."""
        images = tf.cast(images, tf.float32)
        refuse_probabilities(model, images.shape)
        radius = tf.cast(self.epsilon if epsilon is None else epsilon, tf.float32)
        radius = tf.reshape(radius, [-1, 1, 1, 1]) if radius.shape.rank == 1 else radius
        key = tf.cast(self.seed if seed is None else seed, tf.int32)
        key = key if key.shape.rank == 1 else tf.stack([0, key])
        return images, tf.cast(labels, tf.int32), radius, key

    # Not an abstract method: on Python 3.10, ABCMeta claims the class keyword `name`.
    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """The attack itself; the float32 images that it returns are projected into bounds and ball afterwards.

        Args:
            model: The network.
            images: float32 `[batch, height, width, channels]` in [0, 1].
            labels: int32 `[batch]`.
            epsilon: float32 scalar or `[batch, 1, 1, 1]`.
            seed: int32 `[2]`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define how it perturbs images: implement `perturb`.")

    def compiled(self, model: Model) -> Callable[..., tf.Tensor]:
        """This attack on this model as one compiled function, for use outside a `tf.function`.

        It is a function of `(images, labels, *, epsilon=None, seed=None)` that returns what a call returns, raises the
        same errors, and uses the weights that the model has at each call. A new epsilon or seed does not compile it
        again; a new batch size does, once.

        Example:
            >>> craft = PGD(epsilon=8 / 255).compiled(network)
            >>> for images, labels in dataset:
            ...     adversarial = craft(images, labels)
        """

        @tf.function(reduce_retracing=True, autograph=False)
        def craft(images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            return self(model, images, labels, epsilon=epsilon, seed=seed)

        def call(images: Any, labels: Any, *, epsilon: Any = None, seed: Any = None) -> tf.Tensor:
            # Probabilities are refused here, not only while `craft` is traced, so that the error is only this sentence.
            arguments = self._arguments(model, images, labels, epsilon, seed)
            try:
                return craft(*arguments)
            except tf.errors.InvalidArgumentError as error:
                # The range is checked again only now, so that a valid batch is checked once.
                if _lies_inside(arguments[0]):
                    raise
                raise _outside_range(arguments[0]) from error

        return call

    def craft(
        self,
        model: Model,
        images: Any,
        labels: Any,
        *,
        epsilons: Sequence[float] | None = None,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Crafts from whole arrays, batch by batch, compiled, at one epsilon or several.

        Args:
            model: As for a call.
            images: Floats `[images, height, width, channels]` in [0, 1].
            labels: Integers `[images]`.
            epsilons: Several epsilons, instead of the attack's own.
            batch_size: How many adversarial images are crafted together. Each batch draws its own random numbers.

        Returns:
            float32 like `images`; with `epsilons`, one more axis in front, `[epsilons, images, ...]`.

        Example:
            >>> FGSM(epsilon=0.1).craft(network, images, labels, epsilons=[2 / 256, 4 / 256, 8 / 256]).shape
            (3, 1000, 48, 48, 3)
        """
        images, labels = np.asarray(images, "float32"), np.asarray(labels, "int32")
        radii = np.asarray([self.epsilon] if epsilons is None else epsilons, "float32")
        # All epsilons of an image are adjacent, so that one batch holds them.
        pairs = np.indices([len(images), len(radii)]).reshape(2, -1)
        compiled = self.compiled(model)
        crafted = np.empty([pairs.shape[1], *images.shape[1:]], "float32")
        for batch, start in enumerate(range(0, len(crafted), batch_size)):
            image, radius = pairs[:, start : start + batch_size]
            crafted[start : start + batch_size] = compiled(
                images[image], labels[image], epsilon=radii[radius], seed=[batch, self.seed]
            )
        result = crafted.reshape(len(images), len(radii), *images.shape[1:]).swapaxes(0, 1)
        return result[0] if epsilons is None else result

    def outcome(self, model: Model, images: tf.Tensor, labels: tf.Tensor, **call: Any) -> Outcome:
        """Crafts adversarial images, as a call with the same arguments, and reports success and distortion of each.

        Example:
            >>> outcome = DeepFool().outcome(network, images, labels)
            >>> float(tf.reduce_mean(outcome.distortion[outcome.success]))
        """
        images, labels = tf.cast(images, tf.float32), tf.cast(labels, tf.int32)
        adversarial = self(model, images, labels, **call)
        clean, crafted = (consensus(logits_of(model, each)) for each in (images, adversarial))
        return Outcome(
            images=adversarial,
            before=tf.argmax(clean, -1, tf.int32),
            after=tf.argmax(crafted, -1, tf.int32),
            success=self.succeeds(crafted, LABEL_SOURCES[self.label_source].choose(labels, lambda: clean)),
            distortion=tf.reshape(NORMS[self.norm].length(adversarial - images), [-1]),
        )

    def project(self, perturbed: tf.Tensor, images: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
        """The images nearest to `perturbed` in the ball of radius `epsilon` around `images`, clipped to [0, 1]."""
        return tf.clip_by_value(images + NORMS[self.norm].project(perturbed - images, epsilon), 0.0, 1.0)

    @property
    def direction(self) -> float:
        """+1.0 if the attack moves away from a class, -1.0 if it moves toward one."""
        return LABEL_SOURCES[self.label_source].direction

    def classes(self, model: Model, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The int32 classes `[batch]` that the label source chooses at these images."""
        return LABEL_SOURCES[self.label_source].choose(labels, lambda: consensus(logits_of(model, images)))

    def rivals(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, count: int
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The chosen classes `[batch]`, the strongest others `[batch, count]`, and which images succeed as they are."""
        clean = consensus(logits_of(model, images))
        classes = LABEL_SOURCES[self.label_source].choose(labels, lambda: clean)
        return classes, strongest_others(classes, clean, count), self.succeeds(clean, classes)

    def objective(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """The attack's objective, `[..., batch]`, from logits `[..., batch, classes]` and classes `[batch]`."""
        return self.direction * cross_entropy(classes, logits)

    def succeeds(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Whether logits `[..., batch, classes]` have left the classes `[batch]`, or reached them if targeted."""
        reached = tf.argmax(consensus(logits), -1, tf.int32) == classes
        return reached if self.direction < 0 else ~reached

    def gradient(self, model: Model, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The gradient of the objective on the pixels, the label source applied at these images: one pass each way."""

        def objective(logits: tf.Tensor) -> tf.Tensor:
            fixed = tf.stop_gradient(logits)
            return self.objective(logits, LABEL_SOURCES[self.label_source].choose(labels, lambda: consensus(fixed)))

        return input_gradient(model, images, objective)[0]


@dataclass(frozen=True, kw_only=True)
class LossAttack(Attack):
    """An attack that can maximise a loss other than the cross-entropy.

    Attributes:
        loss: "cross_entropy", "margin", "dlr", "hot_cold", or "evading_margin" for a model whose last logit means
            "rejected", where a rejected image is no success.

    Raises:
        ValueError: If the loss is unknown, or "evading_margin" meets a label source that seeks a class.
    """

    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        look_up("loss", self.loss, LOSSES)
        if self.loss == EVADING and self.direction < 0:
            raise ValueError(
                f"{EVADING!r} moves away from a class; to reach one without a rejection, use loss='margin'. "
                f"Received: label_source={self.label_source!r}"
            )

    def objective(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """The loss with that name, signed by the direction."""
        return self.direction * LOSSES[self.loss](classes, logits)

    def succeeds(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        if self.loss == EVADING:
            return evading_margin(classes, consensus(logits)) > 0
        return super().succeeds(logits, classes)


def input_gradient(
    model: Model, images: tf.Tensor, objective: Callable[[tf.Tensor], tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradient on the pixels of an objective that takes logits to a number for each image; that number; the logits.

    Raises:
        ValueError: If the objective does not depend on the images through differentiable operations.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = logits_of(model, images)
        values = objective(logits)
        # Not the mean: the sign is the same, and a mean in float16 underflows.
        total = tf.reduce_sum(values)
    return gradient_of(tape, total, images, model), values, logits


def gradient_of(tape: tf.GradientTape, value: tf.Tensor, images: tf.Tensor, model: Model) -> tf.Tensor:
    """The gradient of a value by the images.

    Raises:
        ValueError: If there is none.
    """
    gradient = tape.gradient(value, images)
    if gradient is None:
        raise ValueError(
            "No gradient reaches the images: the model's outputs do not depend on them through differentiable "
            f"operations. Attacks without gradients, such as 'square', do not need one. Received: model={model!r}"
        )
    return gradient


def consensus(answers: tf.Tensor, rank: int = 2) -> tf.Tensor:
    """The mean over all leading axes of logits `[..., batch, classes]`; of losses `[..., batch]` with `rank=1`."""
    leading = range(answers.shape.rank - rank)
    return tf.reduce_mean(answers, axis=leading) if leading else answers


def available_attacks() -> list[str]:
    """The names that `get` takes."""
    return sorted(Attack.members)


def get(identifier: str | Mapping[str, Any] | Attack, **config: Any) -> Attack:
    """Returns an attack from its name or from a mapping as `serialize` returns it; an attack is returned unchanged.

    Args:
        identifier: A name such as "fgsm", a mapping with a "name" and constructor arguments, or an attack.
        **config: Constructor arguments, which override those of the mapping.

    Raises:
        ValueError: If the name or an argument is unknown; the message gives the nearest.

    Example:
        >>> get("fgsm", epsilon=0.1).epsilon
        0.1
    """
    return Attack.get(identifier, **config)


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _inside_range(images: tf.Tensor) -> tf.Tensor:
    """Checks that the images lie in [0, 1], in graphs too and once for each call, and returns them."""
    if tf.executing_eagerly():
        if not _lies_inside(images):
            raise _outside_range(images)
        return tf.clip_by_value(images, 0.0, 1.0)

    def refuse() -> tf.Operation:
        # Here, inside the branch, the extremes are computed for the message only.
        return tf.debugging.Assert(False, [_RANGE, tf.reduce_min(images), "to", tf.reduce_max(images)])

    with tf.control_dependencies([tf.cond(_lies_inside(images), tf.no_op, refuse)]):
        return tf.clip_by_value(images, 0.0, 1.0)


def _lies_inside(images: tf.Tensor) -> tf.Tensor:
    # Written so that NaN is refused.
    return tf.reduce_all((images >= -_ROUNDING) & (images <= 1 + _ROUNDING))


def _outside_range(images: tf.Tensor) -> ValueError:
    return ValueError(f"{_RANGE} {tf.reduce_min(images):g} to {tf.reduce_max(images):g}")
