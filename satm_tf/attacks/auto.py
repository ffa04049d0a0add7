"""Strong attacks without parameters to tune, for evaluating a defence: APGD and AutoAttack."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from satm_tf.attacks.base import LABEL_SOURCES, Attack, LossAttack, Model, consensus, input_gradient
from satm_tf.attacks.fab import FABTargeted
from satm_tf.attacks.loops import iterate
from satm_tf.attacks.losses import strongest_others, targeted_ratio
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import logits_of
from satm_tf.attacks.square import SquareAttack

_fold_in = tf.random.experimental.stateless_fold_in
Objective = Callable[[tf.Tensor], tf.Tensor]


class _Ascent(NamedTuple):
    """The state of a run of APGD. Images and gradients are `[batch, height, width, channels]`, the rest `[batch]`.

    Attributes:
        x: The current images.
        previous: The images one step before.
        gradient: The gradient at `x`.
        value: The loss at `x`.
        step_size: The current step size, `[batch, 1, 1, 1]`.
        best: The images with the highest loss so far.
        best_gradient: The gradient there.
        highest: The loss there.
        gains: How many steps have raised the loss since the last checkpoint.
        halved: Whether the last checkpoint halved the step size.
        highest_at_checkpoint: The highest loss at the last checkpoint.
        found: The first images that succeeded.
        success: Whether any have succeeded.
    """

    x: tf.Tensor
    previous: tf.Tensor
    gradient: tf.Tensor
    value: tf.Tensor
    step_size: tf.Tensor
    best: tf.Tensor
    best_gradient: tf.Tensor
    highest: tf.Tensor
    gains: tf.Tensor
    halved: tf.Tensor
    highest_at_checkpoint: tf.Tensor
    found: tf.Tensor
    success: tf.Tensor


class _Found(NamedTuple):
    """The result of several runs so far: images, and whether each has left its class `[batch]`."""

    images: tf.Tensor
    success: tf.Tensor


@dataclass(frozen=True, kw_only=True)
class _AutoPGD(Attack):
    """Projected gradient descent with momentum, whose step halves for each image when it stops helping.

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
        """For each step, the number of steps since the last checkpoint if it is one itself; otherwise 0."""
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
        """One run. Returns the first successful images, or else those with the highest loss; and which succeeded."""
        norm = NORMS[self.norm]
        spans = tf.constant(self._checkpoints())

        def look(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            gradient, values, logits = input_gradient(model, x, objective)
            return gradient, consensus(values[..., None])[..., 0], self.succeeds(consensus(logits), classes)

        def step(index: tf.Tensor, state: _Ascent) -> _Ascent:
            forward = self.project(state.x + state.step_size * norm.steepest(state.gradient), images, epsilon)
            share = tf.where(index == 0, 1.0, 0.75)
            mixed = state.x + share * (forward - state.x) + (1 - share) * (state.x - state.previous)
            moved = self.project(mixed, images, epsilon)
            gradient, value, succeeded = look(moved)
            found = tf.where(_each(succeeded & ~state.success), moved, state.found)
            gains = state.gains + tf.cast(value > state.value, tf.float32)
            better = value > state.highest
            best = tf.where(_each(better), moved, state.best)
            best_gradient = tf.where(_each(better), gradient, state.best_gradient)
            highest = tf.maximum(state.highest, value)
            # At a checkpoint: too few gains, or neither a halving nor a new best since the last, halves the step.
            span = tf.cast(spans[index], tf.float32)
            few = gains < 0.75 * span
            stuck = ~state.halved & (highest <= state.highest_at_checkpoint)
            checkpoint = span > 0
            halve = checkpoint & (few | stuck)
            return _Ascent(
                x=tf.where(_each(halve), best, moved),
                previous=tf.where(_each(halve), best, state.x),
                gradient=tf.where(_each(halve), best_gradient, gradient),
                value=tf.where(halve, highest, value),
                step_size=tf.where(_each(halve), state.step_size / 2, state.step_size),
                best=best,
                best_gradient=best_gradient,
                highest=highest,
                gains=tf.where(checkpoint, 0.0, gains),
                halved=tf.where(checkpoint, halve, state.halved),
                highest_at_checkpoint=tf.where(checkpoint, highest, state.highest_at_checkpoint),
                found=found,
                success=state.success | succeeded,
            )

        start = self.project(images + epsilon * norm.random(tf.shape(images), seed), images, epsilon)
        gradient, value, success = look(start)
        none = tf.zeros_like(value)
        state = _Ascent(
            x=start,
            previous=start,
            gradient=gradient,
            value=value,
            step_size=2 * epsilon + tf.zeros_like(images[:, :1, :1, :1]),
            best=start,
            best_gradient=gradient,
            highest=value,
            gains=none,
            halved=none > 0,
            highest_at_checkpoint=value,
            found=start,
            success=success,
        )
        final = iterate(step, state, self.steps)
        return tf.where(_each(final.success), final.found, final.best), final.success


@dataclass(frozen=True, kw_only=True)
class APGD(_AutoPGD, LossAttack, name="apgd"):
    """APGD with cross-entropy or, `loss="dlr"`, the difference-of-logits ratio.

    Attributes:
        loss: "cross_entropy", "dlr", "margin", "hot_cold" or "evading_margin".

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

    Like any untargeted attack, it succeeds when an image leaves its label; targets are only where the runs aim.

    Attributes:
        targets: How many classes to aim at, those with the largest logits at the clean image.

    Raises:
        ValueError: If `targets` is below 1.

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
        """Runs until every image has left its class or there are no more targets."""
        clean = consensus(logits_of(model, images))
        classes = LABEL_SOURCES[self.label_source].choose(labels, lambda: clean)
        targets = strongest_others(classes, clean, self.targets)

        def aim(index: tf.Tensor, state: _Found) -> _Found:
            ratio = lambda logits: targeted_ratio(classes, tf.gather(targets, index, axis=1), logits)  # noqa: E731
            found, success = self._ascend(model, images, classes, epsilon, _fold_in(seed, index), ratio)
            return _Found(tf.where(_each(state.success), state.images, found), state.success | success)

        start = _Found(images, self.succeeds(clean, classes))
        return iterate(aim, start, targets.shape[1], lambda state: ~tf.reduce_all(state.success)).images


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack, name="auto_attack"):
    """APGD-CE, APGD-T, FAB-T and Square in turn, each on the images not yet fooled; meant for a defended network.

    In L-infinity these are the attacks of the standard AutoAttack, in its order and with its parameters. In L2 it lacks
    Square, the only part that works despite masked gradients, so the robust accuracy can be higher.

    Attributes:
        steps: Gradient steps of a run of APGD-CE, APGD-T or FAB-T.
        targets: Classes that APGD-T and FAB-T aim at.
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
            FABTargeted(steps=self.steps, targets=self.targets, **shared),
            *square,
        ]

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Runs each part on the images that the earlier parts did not fool."""
        classes = self.classes(model, images, labels)
        radius = tf.reshape(epsilon + tf.zeros_like(images[:, :1, :1, :1]), [-1])
        state = _Found(images, self.succeeds(consensus(logits_of(model, images)), classes))
        # FAB-T draws no random numbers. So Square takes the third seed, as in releases without FAB-T.
        for place, part in zip((0, 1, 3, 2), self.parts(), strict=False):
            state = self._on_the_rest(part, model, images, classes, radius, _fold_in(seed, place), state)
        return state.images

    def _on_the_rest(
        self,
        part: Attack,
        model: Model,
        images: tf.Tensor,
        classes: tf.Tensor,
        radius: tf.Tensor,
        seed: tf.Tensor,
        state: _Found,
    ) -> _Found:
        def attack() -> _Found:
            rest = tf.where(~state.success)
            chosen = [tf.gather_nd(tensor, rest) for tensor in (images, classes, radius)]
            crafted = part(model, chosen[0], chosen[1], epsilon=chosen[2], seed=seed)
            success = self.succeeds(consensus(logits_of(model, crafted)), chosen[1])
            return _Found(
                tf.tensor_scatter_nd_update(state.images, rest, crafted),
                tf.tensor_scatter_nd_update(state.success, rest, success),
            )

        # Some networks fail on an empty batch, for example in batch normalisation.
        return tf.cond(tf.reduce_all(state.success), lambda: state, attack)


def _each(flags: tf.Tensor) -> tf.Tensor:
    return flags[:, None, None, None]
