"""Carlini and Wagner's three attacks: Adam in tanh space weighs distance against success."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import tensorflow as tf

from satm_tf.attacks.base import Model, consensus, input_gradient
from satm_tf.attacks.deepfool import MinimumDistortion, Nearest
from satm_tf.attacks.loops import iterate, per_image, select
from satm_tf.attacks.losses import margin
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import logits_of

_LARGEST = 1e10
Distance = Callable[[tf.Tensor], tf.Tensor]


class _Descent(NamedTuple):
    """A round of Adam: the images in the tanh space, the means of the gradients and of their squares, the nearest
    successes, the batch's loss at the last check, whether it had fallen.
    """

    w: tf.Tensor
    first: tf.Tensor
    second: tf.Tensor
    nearest: Nearest
    last: tf.Tensor
    improving: tf.Tensor


class _Bisection(NamedTuple):
    """The L2 attack's rounds: the ends and the current weight of success `[batch]`, and the nearest successes."""

    low: tf.Tensor
    high: tf.Tensor
    constant: tf.Tensor
    nearest: Nearest


class _Tightening(NamedTuple):
    """The other rounds: the shrinking limit and the weight of success `[batch]`, and the nearest successes."""

    limit: tf.Tensor
    constant: tf.Tensor
    nearest: Nearest


@dataclass(frozen=True, kw_only=True)
class _CarliniWagner(MinimumDistortion):
    """The base of the three attacks.

    Attributes:
        rounds: How often the weight of success, the reach or the set of pixels is updated.
        steps: The largest number of Adam's steps in a round. A round ends early if a tenth of them brought no progress.
        step_size: Adam's learning rate, in the tanh space.
        initial_constant: The first weight of success against distance, c in the paper.
        confidence: The margin by which the logits must favour the other class, kappa in the paper.

    Raises:
        ValueError: If a number is out of range.
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
        """How far the logits are from success, `[batch]`; f_6 of the paper."""
        return tf.maximum(-self.direction * margin(classes, consensus(logits)), -self.confidence)

    def _at(self, x: tf.Tensor, distance: tf.Tensor | float, logits: tf.Tensor, classes: tf.Tensor) -> Nearest:
        """Images at a distance, infinite without success at the confidence."""
        success = (self._missing(logits, classes) <= -self.confidence) & self.succeeds(logits, classes)
        return Nearest(x, tf.where(success, distance, math.inf))

    def _minimise(
        self,
        model: Model,
        images: tf.Tensor,
        start: tf.Tensor,
        classes: tf.Tensor,
        constant: tf.Tensor,
        distance: Distance,
        free: tf.Tensor | float = 1.0,
    ) -> Nearest:
        """One round of Adam on `distance(x' - x) + constant * missing(x')`, where `free` is 1.0 and not 0.0."""
        patience = max(self.steps // 10, 1)

        def step(index: tf.Tensor, state: _Descent) -> _Descent:
            inside = 0.5 * (tf.tanh(state.w) + 1.0)
            x = images + free * (inside - images)
            # The distance has a gradient of its own, so that a network without one is noticed.
            pull, missing, logits = input_gradient(model, x, lambda logits: constant * self._missing(logits, classes))
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                far = distance(x - images)
            gradient = (pull + tape.gradient(far, x)) * free * 2 * inside * (1 - inside)
            time = tf.cast(index + 1, tf.float32)
            first = 0.9 * state.first + 0.1 * gradient
            second = 0.999 * state.second + 0.001 * tf.square(gradient)
            move = (first / (1 - 0.9**time)) / (tf.sqrt(second / (1 - 0.999**time)) + 1e-8)
            loss = tf.reduce_sum(far + missing)
            check = tf.equal(index % patience, 0)
            return _Descent(
                w=state.w - self.step_size * move,
                first=first,
                second=second,
                nearest=state.nearest.or_nearer(self._at(x, far, logits, classes)),
                last=tf.where(check, loss, state.last),
                improving=~check | (loss < 0.9999 * state.last),
            )

        w = tf.atanh(0.999999 * (2 * start - 1))
        nowhere, still = Nearest(start, tf.fill(tf.shape(classes), math.inf)), tf.zeros_like(w)
        begin = _Descent(w, still, still, nowhere, tf.constant(math.inf), tf.constant(True))
        return iterate(step, begin, self.steps, lambda state: state.improving).nearest

    def _tighten(
        self,
        model: Model,
        images: tf.Tensor,
        classes: tf.Tensor,
        limit: float,
        set_up: Callable[[_Tightening], tuple[Distance, tf.Tensor | float]],
        next_limit: Callable[[_Tightening, tf.Tensor, tf.Tensor], tf.Tensor],
    ) -> tf.Tensor:
        """Rounds that each start from the last success; after a round without one, the weight of success doubles.

        `set_up` gives the distance of a round and where its pixels are free to change, from the state; `next_limit` the
        limit of the next round, from the state, whether the round was a success, and the distances that it found.
        """

        def round_(_: tf.Tensor, state: _Tightening) -> _Tightening:
            distance, free = set_up(state)
            found, far = self._minimise(model, images, state.nearest.images, classes, state.constant, distance, free)
            length = NORMS[self.norm].length(found - images)[:, 0, 0, 0]
            better = (far < math.inf) & (length < state.nearest.distance)
            return _Tightening(
                limit=next_limit(state, better, length),
                constant=tf.where(better, state.constant, tf.minimum(2 * state.constant, _LARGEST)),
                nearest=select(better, Nearest(found, length), state.nearest),
            )

        none = tf.zeros(tf.shape(classes))
        start = self._at(images, 0.0, logits_of(model, images), classes)
        return iterate(
            round_, _Tightening(none + limit, none + self.initial_constant, start), self.rounds
        ).nearest.images


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL2(_CarliniWagner, name="cw_l2"):
    """Carlini and Wagner's L2 attack: bisection finds the weight of success for each image.

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
        classes = self.classes(model, images, labels)

        def bisect(_: tf.Tensor, state: _Bisection) -> _Bisection:
            found = self._minimise(model, images, images, classes, state.constant, _squared)
            success = found.distance < math.inf
            low = tf.where(success, state.low, state.constant)
            high = tf.where(success, state.constant, state.high)
            return _Bisection(
                low=low,
                high=high,
                constant=tf.where(high < _LARGEST, (low + high) / 2, state.constant * 10),
                nearest=state.nearest.or_nearer(found),
            )

        none = tf.zeros(tf.shape(classes))
        start = self._at(images, 0.0, logits_of(model, images), classes)
        begin = _Bisection(none, none + _LARGEST, none + self.initial_constant, start)
        return iterate(bisect, begin, self.rounds).nearest.images


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerLinf(_CarliniWagner, name="cw_linf"):
    """Carlini and Wagner's L-infinity attack: changes beyond a limit, the reach, are penalised, and the reach shrinks.

    Attributes:
        shrink: The factor of the reach after a success, in (0, 1).

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
        def beyond_reach(state: _Tightening) -> tuple[Distance, float]:
            reach = per_image(state.limit)
            return lambda d: tf.reduce_sum(tf.maximum(tf.abs(d) - reach, 0.0), axis=(1, 2, 3)), 1.0

        def shrink(state: _Tightening, better: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
            return tf.where(better, self.shrink * tf.minimum(length, state.limit), state.limit)

        classes = self.classes(model, images, labels)
        return self._tighten(model, images, classes, 1.0, beyond_reach, shrink)


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL0(_CarliniWagner, name="cw_l0"):
    """Carlini and Wagner's L0 attack: the least important pixels are excluded from change, round by round.

    The importance of a pixel is its change times its gradient. After a round without success, the excluded pixels are
    freed again, half as many are excluded, and the weight of success doubles.

    Attributes:
        epsilon: The most pixels that may differ; infinity sets no limit.
        share: The share of the free pixels that the first round excludes, in (0, 1).

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
        classes = self.classes(model, images, labels)

        def without_the_least(state: _Tightening) -> tuple[Distance, tf.Tensor]:
            best = state.nearest.images
            change = tf.reduce_max(tf.abs(best - images), axis=-1, keepdims=True)
            succeeded = tf.reduce_any(change > 0, axis=(1, 2, 3), keepdims=True)
            kept = tf.cast((change > 0) | ~succeeded, tf.float32)
            gradient, _, _ = input_gradient(model, best, lambda logits: margin(classes, logits))
            matters = tf.reduce_sum(tf.abs(gradient * (best - images)), axis=-1, keepdims=True)
            count = tf.reduce_sum(kept, axis=(1, 2, 3), keepdims=True)
            # At least one pixel is excluded after the first success.
            fewer = tf.where(succeeded, tf.maximum(tf.floor(per_image(state.limit) * count), 1.0), 0.0)
            left = NORMS["l0"].project(kept * (matters + 1e-12), count - fewer)
            return _squared, tf.cast(left > 0, tf.float32)

        def halve(state: _Tightening, better: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
            return tf.where(better | (state.nearest.distance == math.inf), state.limit, state.limit / 2)

        return self._tighten(model, images, classes, self.share, without_the_least, halve)


def _squared(perturbations: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(perturbations), axis=(1, 2, 3))
