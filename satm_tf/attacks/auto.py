"""Strong attacks without parameters to tune, for judging a defence: APGD, and AutoAttack."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow as tf

from satm_tf.attacks.base import LABEL_SOURCES, Attack, LossAttack, Model, consensus, input_gradient
from satm_tf.attacks.losses import targeted_ratio
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import logits_of
from satm_tf.attacks.square import SquareAttack

_fold_in = tf.random.experimental.stateless_fold_in
Objective = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True, kw_only=True)
class _AutoPGD(Attack):
    """Projected gradient descent with momentum whose step halves when it stops helping, for each image by itself.

    Attributes:
        steps: Number of gradient steps, at least 1.

    Raises:
        ValueError: If there is no step.

    Source:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020, Algorithm 1.
    """

    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1. Received: steps={self.steps}")

    def _checkpoints(self) -> list[int]:
        """For each step, how many steps have passed since the last checkpoint if it is one, and else 0."""
        places, gap = [0.0, 0.22], 0.22
        while places[-1] < 1:
            gap = max(gap - 0.03, 0.06)
            places.append(places[-1] + gap)
        at = sorted({math.ceil(place * self.steps - 1e-6) for place in places})
        spans = {here: here - before for before, here in itertools.pairwise(at)}
        return [spans.get(step, 0) for step in range(1, self.steps + 1)]

    def _ascend(
        self,
        model: Model,
        images: tf.Tensor,
        classes: tf.Tensor,
        epsilon: tf.Tensor,
        seed: tf.Tensor,
        objective: Objective,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One run. Gives images that succeed where there are any and else those of the highest loss; and which do."""
        norm = NORMS[self.norm]
        spans = tf.constant(self._checkpoints())

        def look(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            gradient, values, logits = input_gradient(model, x, objective)
            return gradient, consensus(values[..., None])[..., 0], self.succeeds(consensus(logits), classes)

        def step(
            index: tf.Tensor,
            x: tf.Tensor,
            before: tf.Tensor,
            gradient: tf.Tensor,
            value: tf.Tensor,
            size: tf.Tensor,
            best: tf.Tensor,
            best_gradient: tf.Tensor,
            highest: tf.Tensor,
            gains: tf.Tensor,
            halved: tf.Tensor,
            highest_before: tf.Tensor,
            found: tf.Tensor,
            success: tf.Tensor,
        ) -> tuple[tf.Tensor, ...]:
            forward = self.project(x + size * norm.steepest(gradient), images, epsilon)
            share = tf.where(index == 0, 1.0, 0.75)
            moved = self.project(x + share * (forward - x) + (1 - share) * (x - before), images, epsilon)
            gradient, new_value, succeeded = look(moved)
            found = tf.where(_each(succeeded & ~success), moved, found)
            gains += tf.cast(new_value > value, tf.float32)
            better = new_value > highest
            best = tf.where(_each(better), moved, best)
            best_gradient = tf.where(_each(better), gradient, best_gradient)
            highest = tf.maximum(highest, new_value)
            # At a checkpoint: too few gains, or neither a halving nor a new best since the last, halves the step.
            span = tf.cast(spans[index], tf.float32)
            few = gains < 0.75 * span
            stuck = ~halved & (highest <= highest_before)
            checkpoint = span > 0
            halve = checkpoint & (few | stuck)
            return (
                index + 1,
                tf.where(_each(halve), best, moved),
                tf.where(_each(halve), best, x),
                tf.where(_each(halve), best_gradient, gradient),
                tf.where(halve, highest, new_value),
                tf.where(_each(halve), size / 2, size),
                best,
                best_gradient,
                highest,
                tf.where(checkpoint, 0.0, gains),
                tf.where(checkpoint, halve, halved),
                tf.where(checkpoint, highest, highest_before),
                found,
                success | succeeded,
            )

        start = self.project(images + epsilon * norm.random(tf.shape(images), seed), images, epsilon)
        gradient, value, success = look(start)
        none = tf.zeros_like(value)
        size = 2 * epsilon + tf.zeros_like(images[:, :1, :1, :1])
        state = (0, start, start, gradient, value, size, start, gradient, value, none, none > 0, value, start, success)
        final = tf.while_loop(lambda index, *_: index < self.steps, step, state)
        best, found, success = final[6], final[12], final[13]
        return tf.where(_each(success), found, best), success


@dataclass(frozen=True, kw_only=True)
class APGD(_AutoPGD, LossAttack, name="apgd"):
    """APGD with cross-entropy or, `loss="dlr"`, the difference-of-logits ratio.

    Attributes:
        loss: "cross_entropy", "dlr", "margin" or "hot_cold".

    Example:
        >>> adversarial = APGD(epsilon=8 / 255, loss="dlr")(network, images, labels)
    """

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """One run."""
        classes = self.classes(model, images, labels)
        return self._ascend(model, images, classes, epsilon, seed, lambda logits: self.objective(logits, classes))[0]


@dataclass(frozen=True, kw_only=True)
class APGDTargeted(_AutoPGD, name="apgd_targeted"):
    """APGD-T: one run toward each of the likeliest other classes, with the targeted difference-of-logits ratio.

    It leaves the label like any untargeted attack; that it aims at one class after another is how.

    Attributes:
        targets: How many classes to aim at, those with the largest logits at the clean image.

    Raises:
        ValueError: If there is no target.

    Example:
        >>> adversarial = APGDTargeted(epsilon=8 / 255)(network, images, labels)
    """

    label_sources: ClassVar[Sequence[str]] = ("label", "predicted")

    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets < 1:
            raise ValueError(f"targets must be at least 1. Received: targets={self.targets}")

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Run after run, until every image has left its class or there are no more targets."""
        clean = consensus(logits_of(model, images))
        classes = LABEL_SOURCES[self.label_source].choose(labels, lambda: clean)
        mine = tf.one_hot(classes, clean.shape[-1], on_value=float("inf"), off_value=0.0)
        count = min(self.targets, clean.shape[-1] - 1)
        rivals = tf.math.top_k(clean - mine, count).indices

        def aim(index: tf.Tensor, best: tf.Tensor, done: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            ratio = lambda logits: targeted_ratio(classes, tf.gather(rivals, index, axis=1), logits)  # noqa: E731
            found, success = self._ascend(model, images, classes, epsilon, _fold_in(seed, index), ratio)
            return index + 1, tf.where(_each(done), best, found), done | success

        state = (0, images, self.succeeds(clean, classes))
        return tf.while_loop(lambda index, _, done: (index < count) & ~tf.reduce_all(done), aim, state)[1]


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack, name="auto_attack"):
    """APGD-CE, then APGD-T, then Square, each on the images that still hold; to be run on a defended network.

    It is the standard AutoAttack less FAB-T, which is slow and adds least, so that its robust accuracy can come out
    a little above the standard one's. In L2 there is no Square here, and so no check against masked gradients.

    Attributes:
        steps: Gradient steps of a run of APGD.
        targets: Classes that APGD-T aims at.
        queries: Queries of Square.

    Example:
        >>> holds = ~AutoAttack(epsilon=8 / 255).outcome(network, images, labels).success

    Source:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020.
    """

    label_sources: ClassVar[Sequence[str]] = ("label", "predicted")

    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()

    def parts(self) -> list[Attack]:
        """The attacks, in their order."""
        shared: dict[str, Any] = {"epsilon": self.epsilon, "norm": self.norm}
        square = [SquareAttack(queries=self.queries, **shared)] if self.norm in SquareAttack.norms else []
        return [
            APGD(steps=self.steps, **shared),
            APGDTargeted(steps=self.steps, targets=self.targets, **shared),
            *square,
        ]

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Each part, on what the parts before it left."""
        classes = self.classes(model, images, labels)
        radius = tf.reshape(epsilon + tf.zeros_like(images[:, 0, 0, 0])[:, None, None, None], [-1])
        result = images
        holds = ~self.succeeds(consensus(logits_of(model, images)), classes)
        for place, part in enumerate(self.parts()):
            result, holds = self._on_the_rest(
                part, model, images, classes, radius, _fold_in(seed, place), result, holds
            )
        return result

    def _on_the_rest(
        self,
        part: Attack,
        model: Model,
        images: tf.Tensor,
        classes: tf.Tensor,
        radius: tf.Tensor,
        seed: tf.Tensor,
        result: tf.Tensor,
        holds: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        def attack() -> tuple[tf.Tensor, tf.Tensor]:
            rest = tf.where(holds)
            chosen = [tf.gather_nd(tensor, rest) for tensor in (images, classes, radius)]
            crafted = part(model, chosen[0], chosen[1], epsilon=chosen[2], seed=seed)
            still = ~self.succeeds(consensus(logits_of(model, crafted)), chosen[1])
            return (
                tf.tensor_scatter_nd_update(result, rest, crafted),
                tf.tensor_scatter_nd_update(holds, rest, still),
            )

        # An empty batch is not for every network: batch normalisation can fail on it.
        return tf.cond(tf.reduce_any(holds), attack, lambda: (result, holds))


def _each(flags: tf.Tensor) -> tf.Tensor:
    return flags[:, None, None, None]
