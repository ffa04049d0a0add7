"""Is it masking? Measures what distinguishes a defence from hidden gradients."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.attacks import FGSM, PGD, Attack, AutoAttack, SquareAttack
from satm_tf.attacks.base import Model
from satm_tf.attacks.losses import cross_entropy
from satm_tf.attacks.sources import logits_of
from satm_tf.bars import Bar
from satm_tf.evaluation.masking.verdicts import Facts, Losses, Strength, judge
from satm_tf.evaluation.predictions import CLEAN, Predictions
from satm_tf.evaluation.stand_ins import StandIns
from satm_tf.evaluation.transfer import Classifier, measure

_fold_in = tf.random.experimental.stateless_fold_in


EFFORT = ("steps", "targets", "queries")
"""The options of `masking_checks` that say how hard it tries."""


def masking_checks(
    networks: Mapping[str, Classifier],
    *,
    dataset: tf.data.Dataset,
    epsilon: float,
    undefended: Mapping[str, Classifier] | None = None,
    before: Mapping[str, Classifier] | None = None,
    steps: int = 20,
    targets: int = 3,
    queries: int = 300,
    seed: int = 0,
    folder: str | Path | None = None,
    stage: str = "masking checks",
) -> pd.DataFrame:
    """Applies every check of `verdicts.CHECKS` to every network.

    Args:
        networks: The networks to check, by name. Each also attacks the others.
        dataset: Batches of `(images, labels)`, as `measure` takes them; a few hundred images are enough.
        epsilon: The epsilon, in L-infinity, at which they are claimed to be robust.
        undefended: Networks without a defence, by name: they attack, the networks' own examples are shown to them
            (Table 3 of the paper), and their approximation ratios are the reference.
        before: What a network was before its defence, by its name; a better reference than other networks.
        steps: Steps of the iterative attack and of AutoAttack's; the unbounded one takes twice as many.
        targets: Classes that AutoAttack aims at. The standard has 100 steps, 9 targets and 5,000 queries.
        queries: Queries of the query attacks.
        seed: Seed of all random numbers.
        folder: Where finished parts are kept, as `measure` keeps them.
        stage: The label of progress bars.

    Returns:
        A frame with a row for each check and network, with the columns `check`, `network`, `verdict` ("masking not
        detected", "masking detected" or "not applicable"), `explanation` (a sentence) and `figures` (JSON: the figures
        that the verdict rests on). No check applies to a network that is no better than chance. Checks that compare
        attacks do not apply to a network that gradient attacks fool on nearly every image.

    Raises:
        ValueError: If a network is both defended and undefended, `before` names one that is not checked, or as
            `measure` does.

    Example:
        >>> checks = masking_checks({"satm/vgg": vgg}, undefended={"inception": holdout}, dataset=test, epsilon=8 / 255)
        >>> checks.query("verdict == 'masking detected'")

    Source:
        Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 3; Carlini et al., "On
        Evaluating Adversarial Robustness", 2019; Tramer et al., "Ensemble Adversarial Training", ICLR 2018, section 4.
    """
    undefended, before = dict(undefended or {}), dict(before or {})
    in_both, unchecked = set(networks) & set(undefended), set(before) - set(networks)
    if in_both or unchecked or not networks:
        raise ValueError(
            "A network must be checked or undefended, not both, and `before` is for networks that are checked. "
            f"Received: {sorted(in_both or unchecked) or 'no network to check'}"
        )
    earlier = {f"{name} before": network for name, network in before.items()}
    images = next(iter(dataset))[0]
    every = {**networks, **undefended, **earlier}
    differentiable = {name: network for name, network in every.items() if gradient_reaches(network, images)}
    shared = {"dataset": dataset, "seed": seed, "folder": folder}
    iterative = PGD(epsilon=epsilon, steps=steps)
    matrix = measure(
        sources=differentiable,
        targets={**networks, **undefended},
        attacks={"single step": FGSM(epsilon=epsilon), "iterative": iterative},
        stage=f"{stage}: gradients",
        **shared,
    )
    stand_ins = StandIns(differentiable.values())
    probe = functools.partial(_probe, dataset, iterative)
    losses = {
        name: _losses(stand_ins.compiled("losses", probe, network), dataset, seed, f"{stage}: losses of {name}")
        for name, network in differentiable.items()
    }
    without_gradient: dict[str, Attack] = {
        "noise": Noise(epsilon=epsilon),
        "square": SquareAttack(epsilon=epsilon, queries=queries),
    }
    with_gradient: dict[str, Attack] = {
        **without_gradient,
        "unbounded": PGD(epsilon=1.0, steps=2 * steps),
        "AutoAttack": AutoAttack(epsilon=epsilon, steps=steps, targets=targets, queries=queries),
    }
    verdicts = []
    for name, network in networks.items():
        alone = measure(
            sources={name: network},
            targets={name: network, **undefended},
            attacks=with_gradient if name in differentiable else without_gradient,
            stage=f"{stage}: {name}",
            **shared,
        )
        verdicts += judge(_facts(name, epsilon, matrix, alone, losses, [*networks, *undefended], list(undefended)))
    frame = pd.DataFrame(verdicts)
    frame["figures"] = frame.figures.map(lambda figures: json.dumps({key: round(x, 6) for key, x in figures.items()}))
    return frame


@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """A baseline: of several draws of random signs of size epsilon, the first that fools the network."""

    draws: int = 10

    def perturb(
        self, model: Model, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Draws until the network is fooled on every image."""

        def draw(index: tf.Tensor, best: tf.Tensor, done: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            moved = images + epsilon * _random_signs(images, _fold_in(seed, index))
            moved = tf.where(done[:, None, None, None], best, tf.clip_by_value(moved, 0.0, 1.0))
            return index + 1, moved, done | self.succeeds(logits_of(model, moved), labels)

        none_fooled = tf.zeros_like(labels, tf.bool)
        return tf.while_loop(lambda index, *_: index < self.draws, draw, (0, images, none_fooled))[1]


def gradient_reaches(network: Model, images: tf.Tensor) -> bool:
    """Whether the logits depend on the images through differentiable operations.

    Args:
        network: The network.
        images: float32 `[batch, height, width, channels]`; one is enough.
    """
    images = tf.cast(images[:1], tf.float32)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = logits_of(network, images)
    return _gradient(tape, logits, images) is not None


def loss_surface(
    network: Model, images: tf.Tensor, labels: tf.Tensor, *, epsilon: float, points: int = 13, seed: int = 0
) -> pd.DataFrame:
    """The mean loss on the plane through the images that the gradient's sign and random signs span.

    Args:
        network: The network.
        images: Floats `[batch, height, width, channels]` in [0, 1].
        labels: Integers `[batch]`.
        epsilon: How far to go in each direction, both ways, in units of images in [0, 1].
        points: Number of points along each.
        seed: Seed of the random signs.

    Returns:
        A frame with `points * points` rows and the columns `along_gradient`, `along_random` (in units of images) and
        `loss`, the mean cross-entropy of the labels. Where no gradient reaches the images, it is zero.

    Example:
        >>> surface = loss_surface(network, images, labels, epsilon=16 / 256)

    Source:
        Figure 1 of Tramer et al., "Ensemble Adversarial Training", ICLR 2018.
    """
    images, labels = tf.cast(images, tf.float32), tf.cast(labels, tf.int32)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        total = tf.reduce_sum(cross_entropy(labels, logits_of(network, images)))
    gradient = _gradient(tape, total, images)
    along_gradient = tf.zeros_like(images) if gradient is None else tf.sign(gradient)
    along_random = _random_signs(images, tf.constant([seed, 0]))

    @tf.function(autograph=False)
    def loss_at(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        moved = tf.clip_by_value(images + first * along_gradient + second * along_random, 0.0, 1.0)
        return tf.reduce_mean(cross_entropy(labels, logits_of(network, moved)))

    places = np.linspace(-epsilon, epsilon, points)
    # Two constants, or each pair of numbers would be traced anew.
    rows = [(x, y, float(loss_at(*map(tf.constant, np.array([x, y], np.float32))))) for x in places for y in places]
    return pd.DataFrame(rows, columns=["along_gradient", "along_random", "loss"])


def _gradient(tape: tf.GradientTape, outputs: tf.Tensor, images: tf.Tensor) -> tf.Tensor | None:
    try:
        return tape.gradient(outputs, images)
    except LookupError:  # an operation without a gradient, such as another runtime's
        return None


def _random_signs(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return tf.sign(tf.random.stateless_uniform(tf.shape(images), seed) - 0.5)


def _probe(dataset: tf.data.Dataset, iterative: Attack, network: Model) -> Callable[..., dict[str, tf.Tensor]]:
    @tf.function(input_signature=[*dataset.element_spec, tf.TensorSpec([2], tf.int32)], autograph=False)
    def probe(images: tf.Tensor, labels: tf.Tensor, key: tf.Tensor) -> dict[str, tf.Tensor]:
        images, labels = tf.cast(images, tf.float32), tf.cast(labels, tf.int32)

        def loss(x: tf.Tensor) -> tf.Tensor:
            return cross_entropy(labels, logits_of(network, tf.clip_by_value(x, 0.0, 1.0)))

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            clean = loss(images)
            total = tf.reduce_sum(clean)
        gradient = tape.gradient(total, images)
        size = tf.reduce_max(tf.abs(gradient), axis=(1, 2, 3))
        return {
            "clean": clean,
            "single_step": loss(images + iterative.epsilon * tf.sign(gradient)),
            "iterative": loss(iterative(network, images, labels, seed=key)),
            "random": loss(images + iterative.epsilon * _random_signs(images, _fold_in(key, 1))),
            "zero_gradient": ~(tf.math.is_finite(size) & (size > 0)),
        }

    return probe.get_concrete_function()


def _losses(probe: Callable[..., dict[str, tf.Tensor]], dataset: tf.data.Dataset, seed: int, stage: str) -> Losses:
    found = []
    with Bar(len(dataset), stage, "batch") as bar:
        for index, (images, labels) in enumerate(dataset):
            found.append(probe(images, labels, tf.constant([seed, index])))
            bar.update()
    return Losses(**{name: np.concatenate([each[name].numpy() for each in found]) for name in found[0]})


def _facts(
    name: str,
    epsilon: float,
    matrix: Predictions,
    alone: Predictions,
    losses: Mapping[str, Losses],
    attackers: list[str],
    undefended: list[str],
) -> Facts:
    """The measurements, arranged by their role for one network."""
    has_gradient, before = name in losses, f"{name} before"
    # Networks before their defence do not attack: they would be nearly white-box attackers of the defended network.
    others = [other for other in attackers if other != name and other in losses]

    def under(attack: str, source: str, target: str = name) -> np.ndarray:
        return matrix.correct(attack, epsilon, source, target)

    def on_itself(attack: str, radius: float = epsilon, target: str = name) -> np.ndarray:
        return alone.correct(attack, radius, name, target)

    references = [before] if before in losses else [other for other in undefended if other in losses]
    return Facts(
        network=name,
        num_classes=alone.num_classes,
        clean=matrix.correct(CLEAN, 0.0, "", name),
        losses=losses.get(name),
        single_step=under("single step", name) if has_gradient else None,
        iterative=under("iterative", name) if has_gradient else None,
        unbounded=on_itself("unbounded", 1.0) if has_gradient else None,
        noise=on_itself("noise"),
        square=on_itself("square"),
        auto_attack=on_itself("AutoAttack") if has_gradient else None,
        transferred={
            (attack, other): under(attack, other) for attack in ("single step", "iterative") for other in others
        },
        strength={
            other: Strength(
                clean=matrix.correct(CLEAN, 0.0, "", other),
                noise=on_itself("noise", target=other),
                own=under("single step", name, other),
                before=under("single step", before, other) if before in losses else None,
                others=[under("single step", source, other) for source in others if source != other],
            )
            for other in (undefended if has_gradient else [])
        },
        reference_ratios=[losses[reference].approximation_ratio() for reference in references],
    )
