"""Square attack: a random search that uses only the logits."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import tensorflow as tf

from satm_tf.attacks.base import LossAttack, Model, consensus
from satm_tf.attacks.loops import iterate, select
from satm_tf.attacks.sources import logits_of

_fold_in = tf.random.experimental.stateless_fold_in

# The shares of the queries after which the squares' area halves.
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


class _Candidate(NamedTuple):
    """An image each, its margin `[batch]`, and whether it succeeds `[batch]`."""

    x: tf.Tensor
    margin: tf.Tensor
    success: tf.Tensor


@dataclass(frozen=True, kw_only=True)
class SquareAttack(LossAttack, name="square"):
    """Squares of `+epsilon` or `-epsilon` at random places, kept if the margin falls. It needs no gradient.

    A successful image stays unchanged, and the search ends when all are successful.

    Attributes:
        queries: The most queries of the network for each image, at least 1.
        share: The share of the image that the first squares cover, in (0, 1]; p in the paper.
        loss: "margin", as in the paper; "evading_margin" for a model whose last logit means "rejected"; or another loss
            that `LossAttack` takes.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> adversarial = SquareAttack(epsilon=8 / 255, queries=1000)(network, images, labels)

    Source:
        Andriushchenko et al., "Square Attack: A Query-efficient Black-box Adversarial Attack via Random Search", ECCV
        2020, Algorithms 1 and 2.
    """

    norms: ClassVar[Sequence[str]] = ("linf",)

    queries: int = 5000
    share: float = 0.8
    loss: str = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 1 or not 0 < self.share <= 1:
            raise ValueError(f"queries must be at least 1, and share in (0, 1]. Received: {self}")

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        return self.search(model, images, labels, seed, epsilon=epsilon)[0]

    def search(
        self,
        model: Model,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        *,
        epsilon: tf.Tensor | float | None = None,
        starts: Sequence[tf.Tensor] = (),
        budgets: Sequence[int] | None = None,
    ) -> list[tf.Tensor]:
        """The best images after several numbers of queries, from one search; traceable, like a call.

        Args:
            model: As for a call.
            images: float32 `[batch, height, width, channels]` in [0, 1].
            labels: int32 `[batch]`.
            seed: int32 `[2]`.
            epsilon: Replaces the attack's epsilon.
            starts: Images in the ball to start from, such as transferred examples, instead of stripes. Each costs a
                query, and the search continues from the best one.
            budgets: Increasing numbers of queries, at most `queries`; None means only `queries`.

        Returns:
            Images like `images` for each budget.

        Raises:
            ValueError: If the budgets do not increase, are below the number of starts, or exceed `queries`.

        Example:
            >>> at_50, at_100 = SquareAttack(epsilon=0.1, queries=100).search(
            ...     network, images, labels, seed, starts=[transferred], budgets=[50, 100])
        """
        epsilon = self.epsilon if epsilon is None else epsilon
        budgets = [self.queries] if budgets is None else list(budgets)
        used = max(1, len(starts))
        if budgets != sorted(set(budgets)) or not used <= budgets[0] <= budgets[-1] <= self.queries:
            raise ValueError(
                f"Budgets must increase, allow a query for each start, and be at most queries={self.queries}. "
                f"Received: {budgets} with {len(starts)} starts"
            )
        classes = self.classes(model, images, labels)
        batch, height, width, channels = tf.unstack(tf.shape(images))
        rows, columns = tf.range(height)[None, :, None, None], tf.range(width)[None, None, :, None]

        def look(x: tf.Tensor, classes: tf.Tensor = classes) -> _Candidate:
            logits = consensus(logits_of(model, x))
            return _Candidate(x, self.objective(logits, classes), self.succeeds(logits, classes))

        def better(best: _Candidate, other: _Candidate) -> _Candidate:
            return select((other.margin > best.margin) & ~best.success, other, best)

        def signs(shape: list[tf.Tensor | int], key: tf.Tensor) -> tf.Tensor:
            return tf.sign(tf.random.stateless_uniform(shape, key) - 0.5)

        def query(before: int, index: tf.Tensor, best: _Candidate) -> _Candidate:
            asked = before + index
            key = _fold_in(seed, asked)
            progress = tf.cast(asked, tf.float32) / self.queries
            halvings = tf.reduce_sum(tf.cast(progress > tf.constant(_HALVINGS), tf.float32))
            area = self.share * 0.5**halvings * tf.cast(height * width, tf.float32)
            side = tf.clip_by_value(tf.cast(tf.round(tf.sqrt(area)), tf.int32), 1, tf.minimum(height, width))
            room = tf.cast(tf.stack([height - side, width - side])[:, None] + 1, tf.float32)
            corner = tf.cast(tf.floor(tf.random.stateless_uniform([2, batch], key) * room), tf.int32)
            top, left = corner[0, :, None, None, None], corner[1, :, None, None, None]
            inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
            flipped = images + epsilon * signs([batch, 1, 1, channels], _fold_in(key, 1))
            moved = tf.clip_by_value(tf.where(inside, flipped, best.x), 0.0, 1.0)
            # Only images that are not successful yet cost a query.
            rest = tf.where(~best.success)
            tried = look(tf.gather_nd(moved, rest), tf.gather_nd(classes, rest))
            margin = tf.tensor_scatter_nd_update(best.margin, rest, tried.margin)
            success = tf.tensor_scatter_nd_update(best.success, rest, tried.success)
            return better(best, _Candidate(moved, margin, success))

        stripes = tf.clip_by_value(images + epsilon * signs([batch, 1, width, channels], seed), 0.0, 1.0)
        clean, first, *others = map(look, (images, *(starts or [stripes])))
        best = functools.reduce(better, others, select(clean.success, clean, first))
        found = []
        for before, budget in itertools.pairwise([used, *budgets]):
            ask = functools.partial(query, before)
            best = iterate(ask, best, budget - before, lambda best: ~tf.reduce_all(best.success))
            found.append(best.x)
        return found
