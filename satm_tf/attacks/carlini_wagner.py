"""Carlini and Wagner's three attacks: distance and success weighed against each other, by Adam, in the tanh space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from satm_tf.attacks.base import LABEL_SOURCES, Model, consensus, input_gradient
from satm_tf.attacks.deepfool import MinimumDistortion
from satm_tf.attacks.losses import margin
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import logits_of

_LARGEST = 1e10


@dataclass(frozen=True, kw_only=True)
class _CarliniWagner(MinimumDistortion):
    """What the three have in common.

    Attributes:
        rounds: How often the weight of success, the reach or the set of pixels is set anew.
        steps: The most steps of Adam in a round. A round ends early when a tenth of them brought nothing.
        step_size: Adam's learning rate, in the tanh space.
        initial_constant: The first weight of success against distance, c in the paper.
        confidence: By how much the logits must have changed sides, kappa in the paper.

    Raises:
        ValueError: If a number is out of range.

    Source:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017.
    """

    rounds: int = 9
    steps: int = 1000
    step_size: float = 0.01
    initial_constant: float = 1e-3
    confidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.rounds, self.steps) < 1 or min(self.step_size, self.initial_constant) <= 0 or self.confidence < 0:
            raise ValueError(f"Rounds, steps, step size and constant must be positive. Received: {self}")

    def _missing(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """What the logits lack to success, `[batch]`; f_6 of the paper."""
        direction = LABEL_SOURCES[self.label_source].direction
        return tf.maximum(-direction * margin(classes, consensus(logits)), -self.confidence)

    def _succeeded(self, logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        enough = self._missing(logits, classes) <= -self.confidence
        return enough & self.succeeds(consensus(logits), classes)

    def _minimise(
        self,
        model: Model,
        images: tf.Tensor,
        start: tf.Tensor,
        classes: tf.Tensor,
        constant: tf.Tensor,
        distance: Callable[[tf.Tensor], tf.Tensor],
        free: tf.Tensor | float = 1.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One round of Adam on `distance(x' - x) + constant * missing(x')`.

        Args:
            model: The network.
            images: The clean images.
            start: Where to start from.
            classes: int32 `[batch]`.
            constant: float32 `[batch]`.
            distance: Takes perturbations to distances `[batch]`.
            free: 1.0 where a pixel may change and 0.0 where not.

        Returns:
            The successful images with the smallest distance, and those distances; infinite where there was no success.
        """

        def step(
            index: tf.Tensor,
            w: tf.Tensor,
            first: tf.Tensor,
            second: tf.Tensor,
            found: tf.Tensor,
            shortest: tf.Tensor,
            last: tf.Tensor,
            going: tf.Tensor,
        ) -> tuple[tf.Tensor, ...]:
            inside = 0.5 * (tf.tanh(w) + 1.0)
            x = images + free * (inside - images)
            pull, missing, logits = input_gradient(model, x, lambda z: constant * self._missing(z, classes))
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                far = distance(x - images)
            gradient = (pull + tape.gradient(far, x)) * free * 2 * inside * (1 - inside)
            time = tf.cast(index + 1, tf.float32)
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * tf.square(gradient)
            move = (first / (1 - 0.9**time)) / (tf.sqrt(second / (1 - 0.999**time)) + 1e-8)
            better = self._succeeded(logits, classes) & (far < shortest)
            loss = tf.reduce_sum(far + missing)
            check = tf.equal(index % patience, 0)
            return (
                index + 1,
                w - self.step_size * move,
                first,
                second,
                tf.where(better[:, None, None, None], x, found),
                tf.where(better, far, shortest),
                tf.where(check, loss, last),
                ~check | (loss < 0.9999 * last),
            )

        w = tf.atanh(0.999999 * (2 * start - 1))
        still, patience = tf.zeros_like(w), max(self.steps // 10, 1)
        state = (0, w, still, still, start, tf.fill(tf.shape(classes), float("inf")), float("inf"), True)
        more = lambda index, *others: (index < self.steps) & others[-1]  # noqa: E731
        return tf.while_loop(more, step, state)[4:6]


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL2(_CarliniWagner, name="cw_l2"):
    """Carlini and Wagner's L2 attack: the weight of success found by bisection, for each image its own.

    Attributes:
        rounds: Steps of the bisection.

    Example:
        >>> outcome = CarliniWagnerL2(steps=200).outcome(network, images, labels)

    Source:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, section VI.A.
    """

    norms: ClassVar[Sequence[str]] = ("l2",)

    norm: str = "l2"

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """The shortest over all rounds."""
        classes = self.classes(model, images, labels)

        def bisect(
            index: tf.Tensor, low: tf.Tensor, high: tf.Tensor, constant: tf.Tensor, best: tf.Tensor, shortest: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            found, far = self._minimise(model, images, images, classes, constant, _squared)
            better, success = far < shortest, far < float("inf")
            high, low = tf.where(success, constant, high), tf.where(success, low, constant)
            return (
                index + 1,
                low,
                high,
                tf.where(high < _LARGEST, (low + high) / 2, constant * 10),
                tf.where(better[:, None, None, None], found, best),
                tf.where(better, far, shortest),
            )

        none = tf.zeros(tf.shape(classes))
        done = self._succeeded(logits_of(model, images), classes)
        shortest = tf.where(done, 0.0, float("inf"))
        state = (0, none, none + _LARGEST, none + self.initial_constant, images, shortest)
        return tf.while_loop(lambda index, *_: index < self.rounds, bisect, state)[4]


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerLinf(_CarliniWagner, name="cw_linf"):
    """Carlini and Wagner's L-infinity attack: what is beyond a reach is penalised, and the reach shrinks.

    Each round starts where the last success ended; after one the reach shrinks, after none success weighs double.

    Attributes:
        shrink: By what the reach is multiplied after a success, in (0, 1).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> outcome = CarliniWagnerLinf(steps=200).outcome(network, images, labels)

    Source:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, section VI.C.
    """

    norms: ClassVar[Sequence[str]] = ("linf",)

    norm: str = "linf"
    rounds: int = 40
    steps: int = 100
    initial_constant: float = 0.1
    shrink: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrink < 1:
            raise ValueError(f"shrink must lie in (0, 1). Received: shrink={self.shrink}")

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """The last success of each image."""
        classes = self.classes(model, images, labels)

        def round_(
            index: tf.Tensor, reach: tf.Tensor, constant: tf.Tensor, best: tf.Tensor, largest: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            beyond = lambda d: tf.reduce_sum(  # noqa: E731
                tf.maximum(tf.abs(d) - reach[:, None, None, None], 0.0), axis=(1, 2, 3)
            )
            found, far = self._minimise(model, images, best, classes, constant, beyond)
            length = NORMS["linf"].length(found - images)[:, 0, 0, 0]
            better = (far < float("inf")) & (length < largest)
            return (
                index + 1,
                tf.where(better, self.shrink * tf.minimum(length, reach), reach),
                tf.where(better, constant, tf.minimum(2 * constant, _LARGEST)),
                tf.where(better[:, None, None, None], found, best),
                tf.where(better, length, largest),
            )

        none = tf.zeros(tf.shape(classes))
        done = self._succeeded(logits_of(model, images), classes)
        state = (0, none + 1.0, none + self.initial_constant, images, tf.where(done, 0.0, float("inf")))
        return tf.while_loop(lambda index, *_: index < self.rounds, round_, state)[3]


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL0(_CarliniWagner, name="cw_l0"):
    """Carlini and Wagner's L0 attack: of the pixels that may change, those that matter least are taken away.

    A pixel matters by its change times its gradient. After a round without success they are given back, and half as
    many are taken; success weighs double from then on.

    Attributes:
        epsilon: The most pixels that may differ; infinity is no cap.
        share: The share of the free pixels that the first round takes away, in (0, 1).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> outcome = CarliniWagnerL0(steps=200).outcome(network, images, labels)
        >>> outcome.distortion  # pixels

    Source:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, section VI.B.
    """

    norms: ClassVar[Sequence[str]] = ("l0",)

    norm: str = "l0"
    rounds: int = 20
    steps: int = 200
    initial_constant: float = 1.0
    share: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1). Received: share={self.share}")

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """The success of each image that changed the fewest pixels."""
        classes = self.classes(model, images, labels)

        def round_(
            index: tf.Tensor, kept: tf.Tensor, share: tf.Tensor, constant: tf.Tensor, best: tf.Tensor, fewest: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            free = self._without_the_least(model, images, best, classes, kept, share)
            found, far = self._minimise(model, images, best, classes, constant, _squared, free)
            pixels = NORMS["l0"].length(found - images)[:, 0, 0, 0]
            better = (far < float("inf")) & (pixels < fewest)
            chosen = better[:, None, None, None]
            changed = tf.reduce_max(tf.abs(found - images), axis=-1, keepdims=True) > 0
            return (
                index + 1,
                tf.where(chosen, tf.cast(changed, tf.float32), kept),
                tf.where(better | (fewest == float("inf")), share, share / 2),
                tf.where(better, constant, tf.minimum(2 * constant, _LARGEST)),
                tf.where(chosen, found, best),
                tf.where(better, pixels, fewest),
            )

        none = tf.zeros(tf.shape(classes))
        done = self._succeeded(logits_of(model, images), classes)
        every = tf.ones_like(images[..., :1])
        fewest = tf.where(done, 0.0, float("inf"))
        state = (0, every, none + self.share, none + self.initial_constant, images, fewest)
        return tf.while_loop(lambda index, *_: index < self.rounds, round_, state)[4]

    def _without_the_least(
        self, model: Model, images: tf.Tensor, best: tf.Tensor, classes: tf.Tensor, kept: tf.Tensor, share: tf.Tensor
    ) -> tf.Tensor:
        gradient, _, _ = input_gradient(model, best, lambda logits: margin(classes, logits))
        matters = tf.reduce_sum(tf.abs(gradient * (best - images)), axis=-1, keepdims=True)
        count = tf.reduce_sum(kept, axis=(1, 2, 3))
        # At least one goes, once there has been a success from which to tell.
        some = tf.where(tf.reduce_any(best != images, axis=(1, 2, 3)), tf.maximum(tf.floor(share * count), 1.0), 0.0)
        left = NORMS["l0"].project(kept * (matters + 1e-12), (count - some)[:, None, None, None])
        return tf.cast(left > 0, tf.float32)


def _squared(perturbations: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(perturbations), axis=(1, 2, 3))
