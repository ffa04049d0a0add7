"""The first sentences of a report: whether a defence helps, against whom, at what cost, and where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from satm_tf.evaluation import rungs
from satm_tf.evaluation.ladder import WORST, compare_ladder, ladder_table
from satm_tf.evaluation.predictions import Predictions
from satm_tf.evaluation.rungs import CLEAN_RUNG, RUNGS, WHITE_BOX
from satm_tf.metrics import at_chance

UNDEFENDED = ("undefended", "original")
"""The schemes that others are compared with, if they were measured."""

# At or below this accuracy, a network is as good as defenceless.
_LOST = 0.1
_ATTACKERS = {
    rungs.UNSEEN_RUNG: "unseen models",
    rungs.PUBLIC_WEIGHTS: "models fine-tuned from the same public weights",
    rungs.START: "the network that training started from",
    rungs.DEFENDED: "defended unseen models",
    rungs.SAME_SCHEME: "models trained with the same scheme",
    rungs.TWIN: "a twin",
    rungs.QUERIES: "queries",
    WHITE_BOX: "white-box attacks",
}
LABELS = {**{name: rung.label for name, rung in {**rungs.BESIDE, **RUNGS}.items()}, WORST: "worst of all attackers"}


def accuracies(predictions: Predictions) -> dict[str, dict[str, float]]:
    """The accuracy of each scheme in each column of `ladder_table`; of each target, if targets have no scheme."""
    table: Any = ladder_table(predictions, by="scheme")
    if table.empty:  # All targets are unseen models.
        return {}
    table = table.xs("accuracy", axis="columns", level="value")
    return {
        str(name): {column: float(rate) for column, rate in row.items() if not pd.isna(rate)}
        for name, row in table.iterrows()
    }


def answer(predictions: Predictions) -> list[str]:
    """A few sentences made from the figures.

    They describe the defence with the highest accuracy under the worst attacker; on a tie, the highest mean over all
    attackers. It helps on a rung if the 95 % interval of its gain over the undefended networks, on the same images,
    lies above zero. The ends of the interval are means over the networks.

    Args:
        predictions: As `measure` gives them.

    Returns:
        Sentences, the most important first.

    Example:
        >>> print(" ".join(answer(Predictions.load("runs/quickstart/predictions.npz"))))
    """
    kept = accuracies(predictions)
    warnings = _warn_of_chance(kept, predictions.num_classes)
    ladder = [rung for rung in RUNGS if any(rung in own for own in kept.values())]
    if not ladder:
        unknown = "No attack without the weights was measured, so this page cannot say what a network withstands."
        return [*warnings, unknown]
    baseline = next((name for name in UNDEFENDED if name in kept), None)
    # The mean decides between defences with equal accuracy under the worst attacker.
    ranked = sorted(
        (name for name in kept if name != baseline),
        key=lambda name: (kept[name].get(WORST, 0.0), np.mean([kept[name].get(rung, 0.0) for rung in ladder])),
        reverse=True,
    )
    if not ranked:
        return [*warnings, f"Only {baseline} was measured. Its accuracy is {_left(kept[str(baseline)], ladder)}."]
    best = ranked[0]
    own = kept[best]
    helped: list[str] = []
    gained: list[str] = []
    if baseline is None:
        sentences = [
            f"{best} is the most robust. Its accuracy is {_left(own, ladder)}.",
            "No undefended network was measured for comparison, so this page cannot say what a defence gained.",
        ]
    else:
        gains = _gains(predictions, baseline, best)
        gained = [rung for rung in ladder if rung in gains]
        helped = [rung for rung in gained if gains[rung]["low"] > 0]
        sentences = [_help(best, baseline, gains, helped, gained)]
        if CLEAN_RUNG in gains:
            sentences.append(_price(gains[CLEAN_RUNG]))
    measured = [rung for rung in (*ladder, WHITE_BOX) if rung in own]
    lost = [rung for rung in measured if own[rung] <= _LOST or (rung in gained and rung not in helped)]
    if lost:
        named = _listed([f"{_ATTACKERS[rung]} ({own[rung]:.1%} left)" for rung in lost])
        sentences.append(f"It does not protect against {named}.")
    return [*warnings, *sentences, *_alike(predictions, best, ranked[1:])]


def _gains(predictions: Predictions, first: str, second: str) -> dict[str, dict[str, float]]:
    """The second scheme's gain over the first in each column, means over the networks that both have.

    The accuracies `before` and `after` are of the same networks and images as `difference`, `low` and `high`.
    """
    compared = compare_ladder(predictions, first, second).rename(columns={first: "before", second: "after"})
    means: Any = compared.groupby("rung", sort=False)[["before", "after", "difference", "low", "high"]].mean()
    return {str(rung): dict(row) for rung, row in means.iterrows()}


def _help(
    best: str, baseline: str, gains: Mapping[str, Mapping[str, float]], helped: Sequence[str], gained: Sequence[str]
) -> str:
    if not helped:
        figures = _listed([f"{_ATTACKERS[rung]} {_change(gains[rung])}" for rung in gained])
        return f"No defence helped significantly. The best one, {best}, compared with {baseline}: {figures}."
    if WORST in gains and gains[WORST]["low"] > 0:
        return (
            f"{best} helps against {_listed([_ATTACKERS[rung] for rung in helped])}. Under the worst attacker for each "
            f"image, accuracy rises: {_change(gains[WORST])} ({_points(gains[WORST])})."
        )
    return f"{best} helps against {_listed([f'{_ATTACKERS[rung]} ({_change(gains[rung])})' for rung in helped])}."


def _price(gain: Mapping[str, float]) -> str:
    figures = f"{_change(gain)}: {_points(gain)}"
    if gain["low"] <= 0 <= gain["high"]:
        return f"On clean images it makes no significant difference ({figures})."
    return f"On clean images it {'costs' if gain['difference'] < 0 else 'gains'} accuracy ({figures})."


def _alike(predictions: Predictions, best: str, others: Sequence[str]) -> list[str]:
    """The other defences that do not differ significantly from the best under the worst attacker."""
    alike = []
    for other in others:
        try:
            gains = _gains(predictions, other, best)
        except ValueError:  # They have no network in common.
            continue
        if WORST in gains and gains[WORST]["low"] <= 0:
            alike.append(other)
    return [f"Under the worst of all attackers, {_listed(alike)} cannot be distinguished from it."] if alike else []


def _warn_of_chance(kept: Mapping[str, Mapping[str, float]], num_classes: int) -> list[str]:
    low = [name for name, own in kept.items() if at_chance(own.get(CLEAN_RUNG, 1.0), num_classes)]
    if not low:
        return []
    verb = "is" if len(low) == 1 else "are"
    return [f"{_listed(low)} {verb} no better than chance on clean images: ignore all other figures for it."]


def _left(own: Mapping[str, float], ladder: Sequence[str]) -> str:
    parts = [f"{own[CLEAN_RUNG]:.1%} on clean images"] if CLEAN_RUNG in own else []
    return _listed([*parts, *(f"{own[rung]:.1%} under {_ATTACKERS[rung]}" for rung in ladder if rung in own)])


def _change(gain: Mapping[str, float]) -> str:
    return f"{gain['before']:.1%} → {gain['after']:.1%}"


def _points(gain: Mapping[str, float]) -> str:
    ends = [100 * gain[end] for end in ("difference", "low", "high")]
    return "{:+.1f} points, 95 % interval {:+.1f} to {:+.1f}".format(*ends)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
