"""The fast adaptive boundary attack: from one linearised boundary to the next, pulled toward the clean image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import tensorflow as tf

from satm_tf.attacks.base import Model, consensus, input_gradient
from satm_tf.attacks.deepfool import MinimumDistortion, Nearest
from satm_tf.attacks.loops import iterate, per_image, select
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import logits_of

_AXES = (1, 2, 3)
# Newton's method converges much earlier, usually within ten steps.
_NEWTON_STEPS = 50


class _Walk(NamedTuple):
    """The state of a run toward one target: the current images, and the nearest successes."""

    x: tf.Tensor
    nearest: Nearest


class _Multiplier(NamedTuple):
    """Newton's method: the multiplier of each image, and whether it has grown, `[batch, 1, 1, 1]`."""

    value: tf.Tensor
    grown: tf.Tensor


@dataclass(frozen=True, kw_only=True)
class FABTargeted(MinimumDistortion, name="fab_targeted"):
    """FAB-T: a run toward each of the likeliest other classes, along the boundary with that class.

    Each step projects the current and the clean image onto the linearised boundary within [0, 1], and goes to a point
    between the two projections, slightly beyond. A point that is misclassified is pulled back toward the clean image.
    The shortest perturbation of all runs counts. Like any untargeted attack, it succeeds when an image leaves its
    label; targets only choose the boundaries. It is deterministic, without restarts. Without success, it returns the
    clean image.

    Attributes:
        norm: "linf" or "l2".
        steps: Number of steps of a run, at least 1.
        targets: How many classes to aim at, at least 1: those with the largest logits at the clean image.
        alpha_max: The largest weight of the clean image's projection, in [0, 1].
        eta: The factor of a projection's length, to cross the boundary; at least 1.
        beta: The factor of a misclassified image's perturbation, in (0, 1).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> outcome = FABTargeted(norm="l2").outcome(network, images, labels)
        >>> outcome.distortion  # L2, of each image

    Source:
        Croce and Hein, "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML 2020,
        Algorithm 1, in the targeted form and with the parameters of the standard AutoAttack.
    """

    label_sources: ClassVar[Sequence[str]] = ("label", "predicted")
    at_least: ClassVar[Mapping[str, float]] = {"steps": 1, "targets": 1, "eta": 1}

    steps: int = 100
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.alpha_max <= 1 and 0 < self.beta < 1):
            raise ValueError(f"alpha_max must lie in [0, 1], and beta in (0, 1). Received: {self}")

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        classes, targets, fooled = self.rivals(model, images, labels, self.targets)

        def aim(index: tf.Tensor, nearest: Nearest) -> Nearest:
            step = self._step_toward(model, images, classes, tf.gather(targets, index, axis=1))
            return iterate(step, _Walk(images, nearest), self.steps).nearest

        start = Nearest(images, tf.where(fooled, 0.0, math.inf))
        return iterate(aim, start, targets.shape[1]).images

    def _step_toward(
        self, model: Model, images: tf.Tensor, classes: tf.Tensor, targets: tf.Tensor
    ) -> Callable[[tf.Tensor, _Walk], _Walk]:
        norm = NORMS[self.norm]

        def gap(logits: tf.Tensor) -> tf.Tensor:
            own, other = (tf.gather(consensus(logits), each, batch_dims=1) for each in (classes, targets))
            return other - own

        def step(_: tf.Tensor, state: _Walk) -> _Walk:
            x = state.x
            gradient, values, _ = input_gradient(model, x, gap)
            # Both paths lead to the same plane, on which the gap, linearised at x, is zero.
            gap_of_x = per_image(values)
            gap_of_clean = gap_of_x + tf.reduce_sum(gradient * (images - x), _AXES, keepdims=True)
            from_x = to_plane(x, gradient, -gap_of_x, self.norm)
            from_clean = to_plane(images, gradient, -gap_of_clean, self.norm)
            length, clean_length = (tf.maximum(norm.length(way), 1e-8) for way in (from_x, from_clean))
            alpha = tf.minimum(length / (length + clean_length), self.alpha_max)
            moved = (1 - alpha) * (x + self.eta * from_x) + alpha * (images + self.eta * from_clean)
            x = tf.clip_by_value(moved, 0.0, 1.0)
            success = self.succeeds(logits_of(model, x), classes)
            distance = tf.where(success, norm.length(x - images)[:, 0, 0, 0], math.inf)
            pulled = select(success, images + self.beta * (x - images), x)
            return _Walk(pulled, state.nearest.or_nearer(Nearest(x, distance)))

        return step


def to_plane(x: tf.Tensor, normal: tf.Tensor, rise: tf.Tensor, norm: str) -> tf.Tensor:
    """The shortest paths from images to points of [0, 1] where a linear function has risen by a given amount.

    The shortest `d` with `<normal, d> = rise` and `0 <= x + d <= 1` moves each pixel along its part of the normal:
    by `min(m, room)` in L-infinity, by `min(m |normal|, room)` in L2, where the room ends at 0 or 1 and the multiplier
    `m` is the same for all pixels of an image. The rise is concave in `m`, so that Newton's method from 0 approaches
    the solution from below, and reaches it once it knows which pixels have used up their room.

    The images and normals are float32 `[batch, height, width, channels]`, the rise is `[batch, 1, 1, 1]`. If no point
    of [0, 1] reaches it, the path leads to the nearest. It is zero where the normal is zero.
    """
    normal *= tf.sign(rise)
    # In units of the largest part: the squares of a tiny normal would underflow.
    largest = NORMS["linf"].length(normal)
    slope = tf.abs(tf.math.divide_no_nan(normal, largest))
    speed = slope if norm == "l2" else tf.ones_like(slope)
    room = tf.where(normal > 0, 1 - x, x)
    most = tf.reduce_sum(slope * room, _AXES, keepdims=True)
    needed = tf.minimum(tf.math.divide_no_nan(tf.abs(rise), largest), most)

    def newton(_: tf.Tensor, multiplier: _Multiplier) -> _Multiplier:
        way = multiplier.value * speed
        risen = tf.reduce_sum(slope * tf.minimum(way, room), _AXES, keepdims=True)
        free = tf.reduce_sum(tf.where(way < room, slope * speed, 0.0), _AXES, keepdims=True)
        value = multiplier.value + tf.maximum(tf.math.divide_no_nan(needed - risen, free), 0.0)
        return _Multiplier(value, value > (1 + 1e-6) * multiplier.value)

    start = _Multiplier(tf.zeros_like(needed), tf.ones_like(needed, tf.bool))
    multiplier = iterate(newton, start, _NEWTON_STEPS, lambda state: tf.reduce_any(state.grown)).value
    return tf.sign(normal) * tf.minimum(multiplier * speed, room)
