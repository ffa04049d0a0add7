"""Strong attacks without parameters to tune, for evaluating a defence: APGD and AutoAttack."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from satm_tf.attacks.base import Attack, LossAttack, Model, consensus, input_gradient
from satm_tf.attacks.fab import FABTargeted
from satm_tf.attacks.loops import Found, iterate, per_image, select
from satm_tf.attacks.losses import targeted_ratio
from satm_tf.attacks.norms import NORMS
from satm_tf.attacks.sources import logits_of
from satm_tf.attacks.square import SquareAttack

_fold_in = tf.random.experimental.stateless_fold_in


class _Point(NamedTuple):
    """Images, the gradient there, and the loss `[batch]`."""

    x: tf.Tensor
    gradient: tf.Tensor
    loss: tf.Tensor


class _Ascent(NamedTuple):
    """A run of APGD: where it is, the images a step before, the step size `[batch, 1, 1, 1]`, the point of the highest
    loss, how many steps have raised the loss since the last checkpoint, whether that one halved the step size and the
    highest loss there, each `[batch]`, and the first images that succeeded.
    """

    here: _Point
    previous: tf.Tensor
    step_size: tf.Tensor
    best: _Point
    gains: tf.Tensor
    halved: tf.Tensor
    highest_at_checkpoint: tf.Tensor
    found: Found


@dataclass(frozen=True, kw_only=True)
class _AutoPGD(Attack):
    """Projected gradient descent with momentum, whose step halves for each image when it stops helping.

    Attributes:
        steps: Number of gradient steps, at least 1.

    Source:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020, Algorithm 1.
    """

    at_least: ClassVar[Mapping[str, float]] = {"steps": 1}

    steps: int = 100

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
        objective: Callable[[tf.Tensor], tf.Tensor],
    ) -> Found:
        """One run: the first successful images, or else those with the highest loss."""
        norm = NORMS[self.norm]
        spans = tf.constant(self._checkpoints())

        def look(x: tf.Tensor) -> tuple[_Point, tf.Tensor]:
            gradient, losses, logits = input_gradient(model, x, objective)
            return _Point(x, gradient, consensus(losses, rank=1)), self.succeeds(logits, classes)

        def step(index: tf.Tensor, state: _Ascent) -> _Ascent:
            here = state.here
            forward = self.project(here.x + state.step_size * norm.steepest(here.gradient), images, epsilon)
            share = tf.where(index == 0, 1.0, 0.75)
            mixed = here.x + share * (forward - here.x) + (1 - share) * (here.x - state.previous)
            moved, success = look(self.project(mixed, images, epsilon))
            gains = state.gains + tf.cast(moved.loss > here.loss, tf.float32)
            best = select(moved.loss > state.best.loss, moved, state.best)
            # At a checkpoint: too few gains, or neither a halving nor a new best since the last, halves the step.
            span = tf.cast(spans[index], tf.float32)
            checkpoint = span > 0
            stuck = ~state.halved & (best.loss <= state.highest_at_checkpoint)
            halve = checkpoint & ((gains < 0.75 * span) | stuck)
            return _Ascent(
                here=select(halve, best, moved),
                previous=select(halve, best.x, here.x),
                step_size=select(halve, state.step_size / 2, state.step_size),
                best=best,
                gains=tf.where(checkpoint, 0.0, gains),
                halved=tf.where(checkpoint, halve, state.halved),
                highest_at_checkpoint=tf.where(checkpoint, best.loss, state.highest_at_checkpoint),
                found=select(state.found.success, state.found, Found(moved.x, success)),
            )

        start, success = look(self.project(images + epsilon * norm.random(tf.shape(images), seed), images, epsilon))
        none = tf.zeros_like(start.loss)
        state = _Ascent(
            here=start,
            previous=start.x,
            step_size=2 * epsilon + per_image(none),
            best=start,
            gains=none,
            halved=none > 0,
            highest_at_checkpoint=start.loss,
            found=Found(start.x, success),
        )
        final = iterate(step, state, self.steps, lambda state: ~tf.reduce_all(state.found.success))
        return select(final.found.success, final.found, Found(final.best.x, final.found.success))


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
        classes = self.classes(model, images, labels)
        return self._ascend(model, images, classes, epsilon, seed, lambda z: self.objective(z, classes)).images


@dataclass(frozen=True, kw_only=True)
class APGDTargeted(_AutoPGD, name="apgd_targeted"):
    """APGD-T: one run toward each of the likeliest other classes, with the targeted difference-of-logits ratio.

    Like any untargeted attack, it succeeds when an image leaves its label; targets are only where the runs aim.

    Attributes:
        targets: How many classes to aim at, at least 1: those with the largest logits at the clean image.

    Example:
        >>> adversarial = APGDTargeted(epsilon=8 / 255)(network, images, labels)
    """

    label_sources: ClassVar[Sequence[str]] = ("label", "predicted")
    at_least: ClassVar[Mapping[str, float]] = {"steps": 1, "targets": 1}

    targets: int = 9

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Runs until every image has left its class or there are no more targets."""
        classes, targets, fooled = self.rivals(model, images, labels, self.targets)

        def aim(index: tf.Tensor, state: Found) -> Found:
            ratio = functools.partial(targeted_ratio, classes, tf.gather(targets, index, axis=1))
            found = self._ascend(model, images, classes, epsilon, _fold_in(seed, index), ratio)
            return select(state.success, state, found)

        start = Found(images, fooled)
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

        def on_the_rest(part: Attack, key: tf.Tensor, state: Found) -> Found:
            def attack() -> Found:
                rest = tf.where(~state.success)
                some, their, radii = (tf.gather_nd(tensor, rest) for tensor in (images, classes, radius))
                crafted = part(model, some, their, epsilon=radii, seed=key)
                success = self.succeeds(logits_of(model, crafted), their)
                return Found(
                    tf.tensor_scatter_nd_update(state.images, rest, crafted),
                    tf.tensor_scatter_nd_update(state.success, rest, success),
                )

            # Some networks fail on an empty batch, for example in batch normalisation.
            return tf.cond(tf.reduce_all(state.success), lambda: state, attack)

        state = Found(images, self.succeeds(logits_of(model, images), classes))
        # FAB-T draws no random numbers. So Square takes the third seed, as in releases without FAB-T.
        for place, part in zip((0, 1, 3, 2), self.parts(), strict=False):
            state = on_the_rest(part, _fold_in(seed, place), state)
        return state.images
