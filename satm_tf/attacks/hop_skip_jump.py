"""HopSkipJump: from the predicted classes only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import tensorflow as tf

from satm_tf.attacks.base import Model
from satm_tf.attacks.deepfool import MinimumDistortion, Nearest
from satm_tf.attacks.loops import Found, iterate, per_image, select
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import logits_of

_fold_in = tf.random.experimental.stateless_fold_in
Decision = Callable[[tf.Tensor], tf.Tensor]

# How often a jump is halved before the attack gives up on it.
_HALVINGS = 20


class _Walk(NamedTuple):
    """The state along the boundary: images beyond it, and the nearest so far."""

    x: tf.Tensor
    nearest: Nearest


class _Interval(NamedTuple):
    """The ends of a bisection, `[batch, 1, 1, 1]` each: `low` does not fool, `high` does."""

    low: tf.Tensor
    high: tf.Tensor


class _Votes(NamedTuple):
    """Sums over queries: of directions times their votes, of directions, and of votes `[batch, 1, 1, 1]`."""

    weighted: tf.Tensor
    directions: tf.Tensor
    votes: tf.Tensor


class _Jump(NamedTuple):
    """The lengths of the jumps, and whether each lands beyond the boundary, `[batch, 1, 1, 1]`."""

    size: tf.Tensor
    landed: tf.Tensor


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(MinimumDistortion, name="hop_skip_jump"):
    """HopSkipJump: walks along the boundary toward the image, guided by the predicted classes only.

    It starts from an image of the same batch with another prediction (the target, if targeted), or else from such
    noise. Without a start, it returns the image unchanged.

    Attributes:
        norm: "l2", or "linf".
        steps: Number of steps along the boundary, at least 1.
        evaluations: Queries for the first estimate of a direction; the estimate at step `t` takes `sqrt(t)` times as
            many.
        starts: How many noise images are tried for a start.

    Example:
        >>> outcome = HopSkipJump(steps=20).outcome(network, images, labels)

    Source:
        Chen et al., "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", S&P 2020, Algorithm 2.
    """

    at_least: ClassVar[Mapping[str, float]] = {"steps": 1, "evaluations": 1, "starts": 1}

    norm: str = "l2"
    steps: int = 20
    evaluations: int = 100
    starts: int = 20

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Repeats: move onto the boundary, estimate a direction, take a step."""
        classes, norm = self.classes(model, images, labels), NORMS[self.norm]
        size = tf.cast(tf.reduce_prod(tf.shape(images)[1:]), tf.float32)
        # The tolerance at the boundary: a share of the path in L2, a length in L-infinity.
        near = size**-1.5 if self.norm == "l2" else size**-2.0

        def fools(x: tf.Tensor) -> tf.Tensor:
            return self.succeeds(logits_of(model, x), classes)

        def at(x: tf.Tensor) -> Nearest:
            return Nearest(x, norm.length(x - images)[:, 0, 0, 0])

        def step(index: tf.Tensor, state: _Walk) -> _Walk:
            key = _fold_in(seed, index)
            x = self._onto_the_boundary(fools, images, state.x, near)
            length = norm.length(x - images)
            time = tf.cast(index + 1, tf.float32)
            count = tf.cast(self.evaluations * tf.sqrt(time), tf.int32)
            radius = tf.maximum(length * tf.sqrt(size) * near if self.norm == "l2" else length * size * near, 1e-4)
            radius = tf.where(index == 0, 0.1, radius)
            direction = norm.steepest(self._direction(fools, x, radius, count, key))
            jumped = self._jump(fools, x, direction, length / tf.sqrt(time))
            return _Walk(jumped, state.nearest.or_nearer(at(x)))

        found = self._start(fools, images, seed)
        # Images that need no perturbation or have no start stay unchanged.
        start = select(found.success & ~fools(images), found.images, images)
        walk = iterate(step, _Walk(start, at(start)), self.steps)
        return walk.nearest.or_nearer(at(self._onto_the_boundary(fools, images, walk.x, near))).images

    def _start(self, fools: Decision, images: tf.Tensor, seed: tf.Tensor) -> Found:
        batch = tf.shape(images)[0]

        def attempt(index: tf.Tensor, start: Found) -> Found:
            # An image cannot be its own start: the first candidate is the next image of the batch.
            place = index + 1
            noise = tf.random.stateless_uniform(tf.shape(images), _fold_in(seed, -place))
            candidate = tf.where(place < batch, tf.roll(images, place, axis=0), noise)
            return select(start.success, start, Found(candidate, fools(candidate)))

        nothing = Found(images, tf.zeros([batch], tf.bool))
        return iterate(attempt, nothing, batch + self.starts - 1, lambda start: ~tf.reduce_all(start.success))

    def _between(self, images: tf.Tensor, x: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        """The point that is `share` of the distance away from the image, toward `x`."""
        if self.norm == "l2":
            return images + share * (x - images)
        return images + tf.clip_by_value(x - images, -share, share)

    def _onto_the_boundary(self, fools: Decision, images: tf.Tensor, x: tf.Tensor, near: tf.Tensor) -> tf.Tensor:
        high = tf.ones_like(x[:, :1, :1, :1]) if self.norm == "l2" else NORMS["linf"].length(x - images)
        rounds = tf.cast(tf.math.ceil(tf.math.log(1.0 / tf.maximum(near, 1e-6)) / tf.math.log(2.0)), tf.int32)

        def halve(_: tf.Tensor, interval: _Interval) -> _Interval:
            middle = (interval.low + interval.high) / 2
            across = per_image(fools(self._between(images, x, middle)))
            return _Interval(tf.where(across, interval.low, middle), tf.where(across, middle, interval.high))

        return self._between(images, x, iterate(halve, _Interval(tf.zeros_like(high), high), rounds).high)

    def _direction(
        self, fools: Decision, x: tf.Tensor, radius: tf.Tensor, count: tf.Tensor, key: tf.Tensor
    ) -> tf.Tensor:
        """The mean of random directions, weighted +1 if they fool and -1 if not, minus the mean vote."""

        def ask(index: tf.Tensor, state: _Votes) -> _Votes:
            draw = tf.random.stateless_normal if self.norm == "l2" else _uniform
            noise = NORMS["l2"].steepest(draw(tf.shape(x), _fold_in(key, index)))
            asked = tf.clip_by_value(x + radius * noise, 0.0, 1.0)
            noise = (asked - x) / radius
            vote = per_image(tf.where(fools(asked), 1.0, -1.0))
            return _Votes(state.weighted + vote * noise, state.directions + noise, state.votes + vote)

        none = tf.zeros_like(x)
        weighted, directions, votes = iterate(ask, _Votes(none, none, tf.zeros_like(x[:, :1, :1, :1])), count)
        mean = votes / tf.cast(count, tf.float32)
        # If all votes agree, they have no spread: take the mean direction itself, with their sign.
        return tf.where(tf.abs(mean) == 1.0, mean * directions, weighted - mean * directions)

    def _jump(self, fools: Decision, x: tf.Tensor, direction: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        def halve(_: tf.Tensor, jump: _Jump) -> _Jump:
            landed = jump.landed | per_image(fools(tf.clip_by_value(x + jump.size * direction, 0.0, 1.0)))
            return _Jump(tf.where(landed, jump.size, jump.size / 2), landed)

        start = _Jump(size, tf.zeros_like(size, tf.bool))
        size, landed = iterate(halve, start, _HALVINGS, lambda jump: ~tf.reduce_all(jump.landed))
        return tf.where(landed, tf.clip_by_value(x + size * direction, 0.0, 1.0), x)


def _uniform(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, -1.0, 1.0)
