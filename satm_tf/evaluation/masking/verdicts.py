"""Verdicts on a network's robustness: each check is a function of the facts and returns its figures too.

Two attacks are compared on the same images, with McNemar's exact test; a difference counts as `statistics.SIGNIFICANCE`
says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from satm_tf.evaluation.leaking import against_clean
from satm_tf.evaluation.statistics import compare_paired, wilson_interval
from satm_tf.metrics import at_chance

NOT_DETECTED, DETECTED, NOT_APPLICABLE = "masking not detected", "masking detected", "not applicable"
"""The verdicts of a check. None of them means that a network is robust: only accuracies show that."""

# The share of images that may be exceptions: their loss is flat, or no step fools the network.
TOLERATED_SHARE = 0.05
# Croce and Hein (2020) found published accuracies too high by a few points for honestly trained networks, and by tens
# for those that hide their gradients. The whole interval of the difference must lie above this.
AUTO_ATTACK_MARGIN = 0.05
# The accuracy at which an attack has fooled the network on nearly all images: its gradient hides nothing.
NOTHING_LEFT = 0.02
# Tramer et al. (2018, section 4) saw the ratio fall from 19 to 7 % and from 17 to 8 % in two networks that masked.
RATIO_KEPT = 0.5

Correct = NDArray[np.bool_]


class Verdict(NamedTuple):
    """The result of one check of one network: a verdict, one sentence, and the figures that it rests on."""

    check: str
    network: str
    verdict: str
    explanation: str
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The cross-entropy of each image's label, float `[images]`, at the image itself and around it."""

    clean: NDArray[np.floating]
    single_step: NDArray[np.floating]  # after one step of epsilon along the gradient's sign
    iterative: NDArray[np.floating]  # after an iterative attack
    random: NDArray[np.floating]  # after a step of epsilon along random signs
    zero_gradient: NDArray[np.bool_]  # the gradient is exactly zero, or not a number

    def approximation_ratio(self) -> float:
        """The loss that one step adds, divided by what the iterative attack adds; NaN if that adds nothing."""
        whole = float(np.mean(self.iterative - self.clean))
        return float(np.mean(self.single_step - self.clean)) / whole if whole > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class Strength:
    """Which images an undefended network classified correctly, bool `[images]`."""

    clean: Correct
    noise: Correct
    own: Correct  # under single-step examples of the network that is checked
    before: Correct | None  # under those of that network as it was before its defence; None if unknown
    others: Sequence[Correct]  # under those of other networks


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is measured about one network. `Correct` is bool `[images]`: whether each was classified correctly.

    Without a gradient that reaches the images, `losses`, and what is measured under gradient attacks, are None.
    """

    network: str
    num_classes: int
    clean: Correct
    losses: Losses | None
    single_step: Correct | None  # under one step on itself
    iterative: Correct | None  # under an iterative attack on itself
    unbounded: Correct | None  # under one that may change every pixel freely
    noise: Correct  # under the worst of several draws of random noise
    square: Correct  # under a query attack on itself
    auto_attack: Correct | None  # under AutoAttack on itself
    # Under examples of other networks, by attack and source.
    transferred: Mapping[tuple[str, str], Correct] = field(default_factory=dict)
    # What its single-step examples do to undefended networks, by name; empty without such networks or a gradient.
    strength: Mapping[str, Strength] = field(default_factory=dict)
    # Approximation ratios of undefended networks: of this one before its defence, or of others.
    reference_ratios: Sequence[float] = ()

    @property
    def white_box(self) -> Correct:
        """Under both gradient attacks; on clean images if there is no gradient."""
        if self.single_step is None or self.iterative is None:
            return self.clean
        return self.single_step & self.iterative

    def verdict(self, detected: bool) -> str:
        """The verdict of a check that compares attacks: if gradient attacks leave nothing, nothing is masked."""
        if detected:
            return DETECTED
        return NOT_APPLICABLE if _accuracy(self.white_box) <= NOTHING_LEFT else NOT_DETECTED


Judgement = tuple[str, dict[str, float], str]
_NO_GRADIENT = "No gradient reaches the images, so no gradient attack works; see the gradient check."


def gradient(facts: Facts) -> Judgement:
    """A gradient must reach the images and not vanish: rounding cuts it off, a saturated softmax rounds it to zero."""
    if facts.losses is None:
        return DETECTED, {"zero_gradient": 1.0}, "No gradient reaches the images: some operation blocks it."
    figures = _share("zero_gradient", facts.losses.zero_gradient)
    return (
        DETECTED if figures["low"] > TOLERATED_SHARE else NOT_DETECTED,
        figures,
        f"The gradient of the loss is zero or not a number for {figures['zero_gradient']:.1%} of the images.",
    )


def iterative_against_single_step(facts: Facts) -> Judgement:
    """Many steps must succeed at least as often as one."""
    if facts.single_step is None or facts.iterative is None:
        return NOT_APPLICABLE, {}, _NO_GRADIENT
    compared = compare_paired(facts.single_step, facts.iterative)
    figures = {name: _accuracy(getattr(facts, name)) for name in ("single_step", "iterative")}
    figures["p"] = compared.p_value
    return (
        facts.verdict(compared.rises()),
        figures,
        f"Accuracy is {figures['single_step']:.1%} under one step, and {figures['iterative']:.1%} under many steps.",
    )


def black_box_against_white_box(facts: Facts) -> Judgement:
    """An attacker who knows the network must do at least as well as one who does not."""
    attacks = {"square": facts.square} | {f"{name} from {source}": x for (name, source), x in facts.transferred.items()}
    return _strongest_of(facts, attacks, "an attack without access to the network")


def noise_against_white_box(facts: Facts) -> Judgement:
    """Random noise must not succeed where gradient attacks fail."""
    return _strongest_of(facts, {"noise": facts.noise}, "random noise of the same size")


def _strongest_of(facts: Facts, attacks: Mapping[str, Correct], attacker: str) -> Judgement:
    white_box = facts.white_box
    compared = {name: compare_paired(white_box, correct) for name, correct in attacks.items()}
    strongest = min(attacks, key=lambda name: attacks[name].mean())
    figures = {"white_box": _accuracy(white_box)} | {name: _accuracy(correct) for name, correct in attacks.items()}
    figures["p"] = compared[strongest].p_value
    named = f" ({strongest})" if len(attacks) > 1 else ""
    return (
        facts.verdict(any(found.falls(len(attacks)) for found in compared.values())),
        figures,
        f"Accuracy is {figures[strongest]:.1%} under {attacker}{named}, and {figures['white_box']:.1%} under gradient "
        "attacks.",
    )


def unbounded_reaches_zero(facts: Facts) -> Judgement:
    """An attack that may change every pixel at will must fool the network on every image."""
    if facts.unbounded is None:
        return NOT_APPLICABLE, {}, _NO_GRADIENT
    figures = _share("rate", facts.unbounded)
    sentence = f"Accuracy is {figures['rate']:.1%} under the iterative attack with epsilon 1."
    return facts.verdict(figures["low"] > TOLERATED_SHARE), figures, sentence


def loss_along_the_gradient(facts: Facts) -> Judgement:
    """Along the gradient the loss must rise faster than along a random direction, for most images."""
    if facts.losses is None:
        return NOT_APPLICABLE, {}, _NO_GRADIENT
    losses = facts.losses
    figures = _share("faster", losses.single_step > losses.random)
    figures["gradient_gain"] = float(np.mean(losses.single_step - losses.clean))
    figures["random_gain"] = float(np.mean(losses.random - losses.clean))
    return (
        NOT_DETECTED if figures["low"] > 0.5 else DETECTED,
        figures,
        f"For {figures['faster']:.1%} of the images the loss rises faster along the gradient than along random signs.",
    )


def approximation_ratio(facts: Facts) -> Judgement:
    """One step must raise the loss by about the same share as on undefended networks."""
    if facts.losses is None:
        return NOT_APPLICABLE, {}, _NO_GRADIENT
    ratio = facts.losses.approximation_ratio()
    if math.isnan(ratio):
        return DETECTED, {}, "The iterative attack does not raise the loss at all."
    found = f"One step reaches {ratio:.0%} of the increase in loss that many steps reach"
    references = [value for value in facts.reference_ratios if not math.isnan(value)]
    if not references:
        return NOT_APPLICABLE, {"ratio": ratio}, f"{found}; there is no undefended network to compare with."
    reference = float(np.mean(references))
    return (
        DETECTED if ratio < RATIO_KEPT * reference else NOT_DETECTED,
        {"ratio": ratio, "undefended": reference},
        f"{found}; on undefended networks it reaches {reference:.0%}.",
    )


def strength_of_own_examples(facts: Facts) -> Judgement:
    """Its examples must harm undefended networks more than noise does, if those it made before its defence do.

    If the network before its defence is not known, other networks' examples are used instead.

    The loss of strength alone is not a criterion: Tramer et al.'s masking networks (2018, Table 1) kept about 0.6 of
    it, and an honest network's examples lose as much when it relies on other features than the undefended ones.
    """
    if not facts.strength:
        reason = _NO_GRADIENT if facts.losses is None else "There is no undefended network to test its examples on."
        return NOT_APPLICABLE, {}, reason

    def weaker(first: Correct, second: Correct) -> bool:
        """Whether the second examples leave more images correct than the first."""
        return compare_paired(first, second).rises(len(facts.strength))

    each = list(facts.strength.values())
    figures = {
        name: float(np.mean([_accuracy(getattr(x, name)) for x in each]))
        for name in ("clean", "noise", "own", "before")
        if all(getattr(x, name) is not None for x in each)
    }
    than = f"{figures['noise']:.1%} under random noise"
    if "before" in figures:
        than = f"{figures['before']:.1%} under those of the network before its defence"
    detected = any(
        not weaker(x.own, x.noise) and weaker(other, x.own) and weaker(other, x.noise)
        for x in each
        for other in (x.others if x.before is None else [x.before])
    )
    return (
        DETECTED if detected else NOT_DETECTED,
        figures,
        f"Undefended networks have an accuracy of {figures['own']:.1%} under its examples, and {than}.",
    )


def label_leaking(facts: Facts) -> Judgement:
    """No adversarial perturbation may raise the accuracy."""
    own = {"single step": facts.single_step, "iterative": facts.iterative}
    attacks = {(attack, facts.network): correct for attack, correct in own.items() if correct is not None}
    attacks = {**facts.transferred, **attacks}
    if not attacks:
        return NOT_APPLICABLE, {}, "There are no adversarial examples to test."
    compared = against_clean(facts.clean, attacks)
    (attack, source), best = max(compared.items(), key=lambda item: item[1].accuracy)
    return (
        DETECTED if any(leak.leaks for leak in compared.values()) else NOT_DETECTED,
        {"clean": best.clean_accuracy, "adversarial": best.accuracy, "p": best.p_value},
        f"Accuracy is {best.clean_accuracy:.1%} on clean images, and at most {best.accuracy:.1%} on adversarial ones "
        f"({attack} from {source}).",
    )


def auto_attack(facts: Facts) -> Judgement:
    """AutoAttack must not be far stronger than the iterative attack."""
    if facts.auto_attack is None:
        return NOT_APPLICABLE, {}, _NO_GRADIENT
    compared = compare_paired(facts.auto_attack, facts.white_box)
    figures = {name: _accuracy(getattr(facts, name)) for name in ("auto_attack", "white_box")}
    figures |= {"low": compared.low, "high": compared.high}
    return (
        facts.verdict(compared.low > AUTO_ATTACK_MARGIN),
        figures,
        f"Accuracy is {figures['auto_attack']:.1%} under AutoAttack, and {figures['white_box']:.1%} under gradient "
        "attacks.",
    )


CHECKS: Mapping[str, Callable[[Facts], Judgement]] = {
    "gradient": gradient,
    "iterative against single step": iterative_against_single_step,
    "black box against white box": black_box_against_white_box,
    "noise against white box": noise_against_white_box,
    "unbounded epsilon": unbounded_reaches_zero,
    "loss along the gradient": loss_along_the_gradient,
    "approximation ratio": approximation_ratio,
    "strength of own examples": strength_of_own_examples,
    "label leaking": label_leaking,
    "AutoAttack": auto_attack,
}


def judge(facts: Facts) -> list[Verdict]:
    """The verdict of every check on one network."""
    right = _accuracy(facts.clean)
    at_random = f"Accuracy on clean images is {right:.1%}, no better than chance: nothing to defend."
    verdicts = []
    for name, check in CHECKS.items():
        useless = at_chance(right, facts.num_classes)
        verdict, figures, explanation = (NOT_APPLICABLE, {"clean": right}, at_random) if useless else check(facts)
        verdicts.append(Verdict(name, facts.network, verdict, explanation, figures))
    return verdicts


def _share(name: str, images: NDArray[np.bool_]) -> dict[str, float]:
    """The share of images, by this name, and the ends of its interval."""
    low, high = wilson_interval(images.sum(), images.size)
    return {name: float(images.mean()), "low": float(low), "high": float(high)}


def _accuracy(correct: Correct) -> float:
    return float(correct.mean())
