"""HopSkipJump: from the predicted classes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from satm_tf.attacks.base import Model, consensus
from satm_tf.attacks.deepfool import MinimumDistortion
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import logits_of

_fold_in = tf.random.experimental.stateless_fold_in
Decision = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(MinimumDistortion, name="hop_skip_jump"):
    """HopSkipJump: walks along the boundary toward the image, and feels its way by asking for decisions only.

    It starts from an image of the same batch that the network takes for another class (for the target, when targeted),
    or else from noise that is; where there is none the image is returned as it was.

    Attributes:
        norm: "l2", or "linf".
        steps: Number of steps along the boundary, at least 1.
        evaluations: Queries for the first estimate of a direction; that at step `t` takes `sqrt(t)` times as many.
        starts: How many noise images are tried for a start.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> outcome = HopSkipJump(steps=20).outcome(network, images, labels)

    Source:
        Chen et al., "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", S&P 2020, Algorithm 2.
    """

    norm: str = "l2"
    steps: int = 20
    evaluations: int = 100
    starts: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps, self.evaluations, self.starts) < 1:
            raise ValueError(f"steps, evaluations and starts must be at least 1. Received: {self}")

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Onto the boundary, a direction, a step, and again."""
        classes = self.classes(model, images, labels)
        size = tf.cast(tf.reduce_prod(tf.shape(images)[1:]), tf.float32)
        # How near is on the boundary: a share of the way in L2, a length in L-infinity.
        near = size**-1.5 if self.norm == "l2" else size**-2.0

        def fools(x: tf.Tensor) -> tf.Tensor:
            return self.succeeds(consensus(logits_of(model, x)), classes)

        def step(
            index: tf.Tensor, x: tf.Tensor, best: tf.Tensor, shortest: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            key = _fold_in(seed, index)
            x = self._onto_the_boundary(fools, images, x, near)
            length = NORMS[self.norm].length(x - images)
            better = length < shortest
            best, shortest = tf.where(better, x, best), tf.minimum(length, shortest)
            time = tf.cast(index + 1, tf.float32)
            count = tf.cast(self.evaluations * tf.sqrt(time), tf.int32)
            radius = tf.maximum(length * tf.sqrt(size) * near if self.norm == "l2" else length * size * near, 1e-4)
            radius = tf.where(index == 0, 0.1, radius)
            direction = NORMS[self.norm].steepest(self._direction(fools, x, radius, count, key))
            jumped = self._jump(fools, x, direction, length / tf.sqrt(time))
            return index + 1, jumped, best, shortest

        clean = fools(images)
        start, found = self._start(fools, images, seed)
        # What needs no perturbation, and what has no start, stays where it is.
        start = tf.where((clean | ~found)[:, None, None, None], images, start)
        state = (0, start, start, NORMS[self.norm].length(start - images))
        _, last, best, shortest = tf.while_loop(lambda index, *_: index < self.steps, step, state)
        last = self._onto_the_boundary(fools, images, last, near)
        return tf.where(NORMS[self.norm].length(last - images) < shortest, last, best)

    def _start(self, fools: Decision, images: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = tf.shape(images)[0]

        def attempt(index: tf.Tensor, start: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            noise = tf.random.stateless_uniform(tf.shape(images), _fold_in(seed, -index))
            candidate = tf.where(index < batch, tf.roll(images, index, axis=0), noise)
            new = fools(candidate) & ~found
            return index + 1, tf.where(new[:, None, None, None], candidate, start), found | new

        nothing = tf.zeros([batch], tf.bool)
        more = lambda index, _, found: (index < batch + self.starts) & ~tf.reduce_all(found)  # noqa: E731
        return tf.while_loop(more, attempt, (1, images, nothing))[1:]

    def _between(self, images: tf.Tensor, x: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        """The point that is `share` of the distance away from the image, toward `x`."""
        if self.norm == "l2":
            return images + share * (x - images)
        return images + tf.clip_by_value(x - images, -share, share)

    def _onto_the_boundary(self, fools: Decision, images: tf.Tensor, x: tf.Tensor, near: tf.Tensor) -> tf.Tensor:
        high = tf.ones_like(x[:, :1, :1, :1]) if self.norm == "l2" else NORMS["linf"].length(x - images)
        rounds = tf.cast(tf.math.ceil(tf.math.log(1.0 / tf.maximum(near, 1e-6)) / tf.math.log(2.0)), tf.int32)

        def halve(index: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            middle = (low + high) / 2
            across = fools(self._between(images, x, middle))[:, None, None, None]
            return index + 1, tf.where(across, low, middle), tf.where(across, middle, high)

        high = tf.while_loop(lambda index, *_: index < rounds, halve, (0, tf.zeros_like(high), high))[2]
        return self._between(images, x, high)

    def _direction(
        self, fools: Decision, x: tf.Tensor, radius: tf.Tensor, count: tf.Tensor, key: tf.Tensor
    ) -> tf.Tensor:
        """The mean of random directions, each counted for or against as it fools or not, less their mean vote."""

        def ask(
            index: tf.Tensor, voted: tf.Tensor, total: tf.Tensor, votes: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            draw = tf.random.stateless_normal if self.norm == "l2" else _uniform
            noise = NORMS["l2"].steepest(draw(tf.shape(x), _fold_in(key, index)))
            asked = tf.clip_by_value(x + radius * noise, 0.0, 1.0)
            noise = (asked - x) / radius
            vote = tf.where(fools(asked), 1.0, -1.0)[:, None, None, None]
            return index + 1, voted + vote * noise, total + noise, votes + vote

        none = tf.zeros_like(x)
        state = (0, none, none, tf.zeros_like(x[:, :1, :1, :1]))
        _, voted, total, votes = tf.while_loop(lambda index, *_: index < count, ask, state)
        mean = votes / tf.cast(count, tf.float32)
        # Votes that all agree have no spread: then the mean direction itself, for or against.
        return tf.where(tf.abs(mean) == 1.0, mean * total, voted - mean * total)

    def _jump(self, fools: Decision, x: tf.Tensor, direction: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        def halve(index: tf.Tensor, size: tf.Tensor, landed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            across = fools(tf.clip_by_value(x + size * direction, 0.0, 1.0))[:, None, None, None]
            return index + 1, tf.where(landed | across, size, size / 2), landed | across

        more = lambda index, _, landed: (index < 20) & ~tf.reduce_all(landed)  # noqa: E731
        _, size, landed = tf.while_loop(more, halve, (0, size, tf.zeros_like(size, tf.bool)))
        return tf.where(landed, tf.clip_by_value(x + size * direction, 0.0, 1.0), x)


def _uniform(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, -1.0, 1.0)
