"""Against whom a defence holds: accuracies by rung, the worst of all, and schemes compared on the same images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from satm_tf.evaluation.names import NetworkName
from satm_tf.evaluation.predictions import Predictions
from satm_tf.evaluation.rungs import CLEAN_RUNG, RUNGS, WHITE_BOX
from satm_tf.evaluation.statistics import compare_paired, wilson_interval

WORST = "worst"
_VALUES = ("accuracy", "low", "high", "images")


def ladder_table(predictions: Predictions, by: str = "target", epsilon: float | None = None) -> pd.DataFrame:
    """The ladder: the accuracy on clean images, on each rung, under the worst of all rungs, and in a white-box attack.

    A rung counts an image as right if it is right under all attacks and sources of the rung; `worst`, under all of the
    ladder. If only some images were attacked with queries, `queries` and `worst` cover those images.

    Args:
        predictions: As `measure` gives them. Targets in the group "holdout" are left out.
        by: "target", or "scheme" for the mean over the networks of a scheme.
        epsilon: The largest epsilon that an attacker has; None for whatever was measured.

    Returns:
        A frame indexed by target or scheme. Its columns have two levels: `clean`, the rungs that were measured, `worst`
        and `white_box`; and `accuracy`, `low`, `high` (95 %, Wilson's; for a scheme the mean over its networks, which
        is wide enough because they share the images) and `images`. What was not measured is NaN.

    Raises:
        ValueError: If `by` is neither.

    Example:
        >>> ladder_table(predictions, by="scheme").xs("accuracy", axis="columns", level="value")
    """
    if by not in ("target", "scheme"):
        raise ValueError(f"`by` must be 'target' or 'scheme'. Received: by={by!r}")
    rows = {}
    for target in _targets(predictions):
        figures: dict[tuple[str, str], float] = {}
        for column, rungs in _columns(predictions, target).items():
            try:
                right = predictions.worst(target, rungs, epsilon)
            except KeyError:  # All cells of the rung have a larger epsilon.
                continue
            low, high = wilson_interval(right.sum(), len(right))
            rate = right.mean() if len(right) else np.nan
            for value, figure in zip(_VALUES, (rate, low, high, len(right)), strict=True):
                figures[column, value] = float(figure)
        rows[target] = figures
    table = pd.DataFrame.from_dict(rows, orient="index")
    order = [each for each in itertools.product((CLEAN_RUNG, *RUNGS, WORST, WHITE_BOX), _VALUES) if each in table]
    table = table.reindex(columns=pd.MultiIndex.from_tuples(order, names=["rung", "value"])).rename_axis("target")
    if by == "target":
        return table
    schemes = [NetworkName.parse(target).scheme or target for target in table.index]
    return table.groupby(schemes, sort=False).mean().rename_axis("scheme")


def compare_ladder(predictions: Predictions, first: str, second: str, epsilon: float | None = None) -> pd.DataFrame:
    """Compares two schemes rung by rung on the same images, network by network, with McNemar's exact test.

    `worst` takes the rungs that both were measured on, so that neither is measured under more attackers than the other.

    Args:
        predictions: As `measure` gives them, with targets named `<scheme>/<network>`.
        first: One scheme.
        second: Another.
        epsilon: As `ladder_table` takes it.

    Returns:
        A frame with a row for each network that both train, and rung, with the columns `network`, `rung` (as the
        columns of `ladder_table`), `<first>` and `<second>` (the accuracies), `images`, and those of
        `statistics.Paired`.

    Raises:
        ValueError: If the two have no network in common.

    Example:
        >>> compare_ladder(predictions, "ensemble", "satm").query("rung == 'worst'")
    """
    networks: list[Mapping[str, str]] = [
        {name.network: str(name) for name in map(NetworkName.parse, _targets(predictions)) if name.scheme == scheme}
        for scheme in (first, second)
    ]
    common = [network for network in networks[0] if network in networks[1]]
    if not common:
        raise ValueError(
            "Two schemes can be compared only if both were measured on the same networks; the targets are "
            f"{_targets(predictions)}. Received: {first!r} and {second!r}"
        )
    rows = []
    for network in common:
        targets = [each[network] for each in networks]
        columns = [_columns(predictions, target) for target in targets]
        shared = {column: rungs for column, rungs in columns[0].items() if column in columns[1] and column != WORST}
        ladder = [rung for rung in shared if rung in RUNGS]
        for column, rungs in {**shared, **({WORST: ladder} if ladder else {})}.items():
            try:
                (one, measured), (two, also) = (predictions.withstands(target, rungs, epsilon) for target in targets)
            except KeyError:  # All cells of the rung have a larger epsilon.
                continue
            kept = measured & also
            if kept.any():
                rates = {first: float(one[kept].mean()), second: float(two[kept].mean())}
                paired = compare_paired(one[kept], two[kept])._asdict()
                rows.append({"network": network, "rung": column, **rates, "images": int(kept.sum()), **paired})
    return pd.DataFrame(rows)


def _targets(predictions: Predictions) -> list[str]:
    return [name for name in dict.fromkeys(predictions.cells.target) if not NetworkName.parse(name).unseen]


def _columns(predictions: Predictions, target: str) -> dict[str, list[str]]:
    """The measured rungs that make up each column of a target."""
    measured = set(predictions.cells.rung[predictions.cells.target == target])
    columns = {rung: [rung] for rung in (CLEAN_RUNG, *RUNGS, WHITE_BOX) if rung in measured}
    ladder = [rung for rung in RUNGS if rung in measured]
    return {**columns, WORST: ladder} if ladder else columns
