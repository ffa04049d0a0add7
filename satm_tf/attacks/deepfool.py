"""DeepFool, and the base of attacks that search for the smallest perturbation that fools."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import tensorflow as tf

from satm_tf.attacks.base import Attack, Model, consensus, gradient_of
from satm_tf.attacks.loops import iterate, per_image, select
from satm_tf.attacks.losses import margin
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import logits_of

# As in the authors' code: if pixels are clipped to the range, steps would otherwise get ever shorter.
_BEYOND = 1e-4


@dataclass(frozen=True, kw_only=True)
class MinimumDistortion(Attack):
    """An attack that searches for the smallest perturbation that fools; `outcome` reports each image's success.

    For an image without success, the result is the last image of the search. A misclassified image is returned
    unchanged.

    Attributes:
        epsilon: A limit: longer perturbations are projected onto it, and may then no longer fool. Infinity sets no
            limit.
    """

    bounded: ClassVar[bool] = False

    epsilon: float = math.inf


class Nearest(NamedTuple):
    """The nearest success of each image so far, and its distance `[batch]`, infinite if there is none."""

    images: tf.Tensor
    distance: tf.Tensor

    def or_nearer(self, other: Nearest) -> Nearest:
        """The other's where it is nearer."""
        return select(other.distance < self.distance, other, self)


class _Way(NamedTuple):
    """DeepFool's state: the sum of its steps, the images with overshoot, and which of them succeed."""

    total: tf.Tensor
    x: tf.Tensor
    success: tf.Tensor


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimumDistortion, name="deepfool"):
    """DeepFool: steps onto the nearest of the linearised boundaries, until one is crossed.

    Attributes:
        norm: "l2", or "linf".
        steps: The most steps, at least 1.
        candidates: How many rival classes are considered, at least 1: those with the largest logits at the clean image.
        overshoot: The share by which the perturbation is lengthened, to cross a boundary and not end on it.

    Example:
        >>> outcome = DeepFool().outcome(network, images, labels)
        >>> outcome.distortion  # L2, of each image

    Source:
        Moosavi-Dezfooli et al., "DeepFool: A Simple and Accurate Method to Fool Deep Neural Networks", CVPR 2016,
        Algorithm 2; toward a target, the one boundary with the strongest other class.
    """

    at_least: ClassVar[Mapping[str, float]] = {"steps": 1, "candidates": 1, "overshoot": 0}

    norm: str = "l2"
    steps: int = 50
    candidates: int = 10
    overshoot: float = 0.02

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Steps until every image has crossed a boundary, or the limit of steps is reached."""
        classes, rivals, fooled = self.rivals(model, images, labels, self.candidates)

        def step(_: tf.Tensor, state: _Way) -> _Way:
            nearest = self._onto_the_nearest(model, state.x, classes, rivals)
            total = select(state.success, state.total, state.total + nearest)
            x = tf.clip_by_value(images + (1 + self.overshoot) * total, 0.0, 1.0)
            return _Way(total, x, self.succeeds(logits_of(model, x), classes))

        start = _Way(tf.zeros_like(images), images, fooled)
        return iterate(step, start, self.steps, lambda state: ~tf.reduce_all(state.success)).x

    def _onto_the_nearest(self, model: Model, x: tf.Tensor, classes: tf.Tensor, rivals: tf.Tensor) -> tf.Tensor:
        # One forward pass serves every rival; the persistent tape runs one backward pass for each.
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(x)
            gaps = self._gaps(consensus(logits_of(model, x)), classes, rivals)
        gradients = tf.stack([gradient_of(tape, gap, x, model) for gap in gaps])
        sizes = tf.abs(gradients) if self.norm == "linf" else tf.square(gradients)
        dual = tf.reduce_sum(sizes, axis=(2, 3, 4))
        # The length of the path to each boundary, and the path itself.
        length = tf.abs(tf.stack(gaps)) / tf.maximum(dual if self.norm == "linf" else tf.sqrt(dual), 1e-20)
        best = tf.argmin(length, axis=0, output_type=tf.int32)
        index = tf.stack([best, tf.range(tf.shape(x)[0])], axis=-1)
        direction = NORMS[self.norm].steepest(tf.gather_nd(gradients, index))
        return tf.where(direction == 0, 0.0, per_image(tf.gather_nd(length, index) + _BEYOND) * direction)

    def _gaps(self, logits: tf.Tensor, classes: tf.Tensor, rivals: tf.Tensor) -> list[tf.Tensor]:
        """The values that must rise to zero to cross each boundary: `[batch]` each."""
        if self.direction < 0:
            return [-margin(classes, logits)]
        own = tf.gather(logits, classes, batch_dims=1)
        return [tf.gather(logits, rival, batch_dims=1) - own for rival in tf.unstack(rivals, axis=1)]
