"""The tables that the paper prints, as views of a transfer matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from satm_tf.evaluation import rungs
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.evaluation.predictions import CLEAN, Predictions
from satm_tf.evaluation.rungs import RUNGS, rungs_of
from satm_tf.evaluation.statistics import REPEATS, compare_paired, wilson_interval
from satm_tf.storage import read_csv

HOLDOUT = UNSEEN
WHITE_BOX, PARTNERS = "white box", "partners"
# The paper's words.
_VIEWS = {rungs.CLEAN_RUNG: CLEAN, rungs.WHITE_BOX: WHITE_BOX, rungs.PARTNER: PARTNERS, rungs.UNSEEN_RUNG: HOLDOUT}


def with_views(results: pd.DataFrame) -> pd.DataFrame:
    """Adds to each row of `transfer_matrix` how its source relates to its target.

    The names must be `<scheme>/<network>`, and `holdout/<network>` for unseen models. The rows whose target is not an
    unseen model and whose source is on a rung, a partner or the target itself get the columns `scheme`, `network`,
    `source_network` and `view`: "clean", "white box", "partners", "holdout" (the rung of unseen models), or the name of
    another rung.
    """
    rows, source, target = results.copy(), _parsed(results.source), _parsed(results.target)
    rows["scheme"], rows["network"], rows["source_network"] = target.scheme, target.network, source.network
    if "rung" not in rows:
        rows["rung"] = rungs_of(rows.source, rows.target)
    rows["view"] = rows.rung.replace(_VIEWS)
    return rows[(rows.view != "") & (rows.scheme != UNSEEN)]


def _parsed(names: pd.Series) -> pd.DataFrame:
    """The columns `scheme` and `network` of a column of names."""
    parsed = [NetworkName.parse(name) for name in names]
    return pd.DataFrame(parsed, columns=list(NetworkName._fields), index=names.index)


def in_schemes(results: pd.DataFrame) -> bool:
    """Whether all targets are named `<scheme>/<network>`, and some scheme was measured."""
    return all(NetworkName.parse(name).scheme for name in set(results.target)) and not with_views(results).empty


def robustness_table(
    results: pd.DataFrame, attack: str, value: str = "accuracy", epsilon: float | None = None
) -> pd.DataFrame:
    """Shows the schemes side by side: clean, white box, transfer from the partners, transfer from unseen models.

    Args:
        results: As `with_views` takes it. If a cell has several rows, from folds or seeds, their mean is shown.
        attack: The attack to show.
        value: The column to show; the ends of the intervals can be shown in separate tables.
        epsilon: Which of the attack's epsilons, if it has several.

    Returns:
        A frame indexed by `network` and `scheme`, with the columns "clean", "white box", "partners" (the mean over the
        other networks of the same scheme), one for each unseen model, and one for each other rung of the ladder, by its
        label (the mean over its sources; `ladder_table` has the worst). Columns without rows are missing.

    Raises:
        ValueError: If the results lack the attack, or have several epsilons of it and none is chosen.

    Example:
        >>> robustness_table(results, "fgsm").loc[("vgg", "satm"), "partners"]

    Source:
        Tables 2, 4 and 5 of Liao (SATM).
    """
    rows = with_views(_chosen(results, attack, epsilon))
    table = _side_by_side(rows.assign(column=rows.view.where(rows.view != HOLDOUT, rows.source_network)), value)
    first = [name for name in (CLEAN, WHITE_BOX, PARTNERS) if name in table]
    last = [rung for rung in RUNGS if rung in table]
    table = table[[*first, *(name for name in table if name not in (*first, *last)), *last]]
    return table.rename(columns={rung: RUNGS[rung].label for rung in last})


def _side_by_side(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """A row for each network and scheme, by network, with a column for each value of `column`."""
    table = rows.pivot_table(index=["network", "scheme"], columns="column", values=value, sort=False)
    return table.sort_index(level="network", sort_remaining=False, kind="stable").rename_axis(columns=None)


def strength_table(
    results: pd.DataFrame, attack: str, value: str = "accuracy", epsilon: float | None = None
) -> pd.DataFrame:
    """How strong the networks' own examples are on unseen models.

    Args:
        results: As `robustness_table` takes it.
        attack: As `robustness_table` takes it.
        value: As `robustness_table` takes it.
        epsilon: As `robustness_table` takes it.

    Returns:
        A frame indexed by `network` and `scheme`, of the network that crafts, with a column for each unseen model.

    Raises:
        ValueError: As `robustness_table` does.

    Source:
        Table 3 of Liao (SATM).
    """
    rows = _chosen(results, attack, epsilon)
    rows = rows[rows.attack == attack]
    source, target = _parsed(rows.source), _parsed(rows.target)
    rows = rows.assign(scheme=source.scheme, network=source.network, column=target.network)
    return _side_by_side(rows[(source.scheme != UNSEEN) & (target.scheme == UNSEEN)], value)


def _chosen(results: pd.DataFrame, attack: str, epsilon: float | None) -> pd.DataFrame:
    """The rows of one attack at one epsilon, and the clean ones."""
    of_attack = results[results.attack == attack]
    if of_attack.empty:
        raise ValueError(
            f"There are no results for this attack, only for {sorted(set(results.attack))}. Received: {attack}"
        )
    epsilons = sorted(set(of_attack.epsilon)) if "epsilon" in results else []
    if epsilon is None and len(epsilons) > 1:
        raise ValueError(f"{attack!r} has several epsilons, {epsilons}; choose one. Received: epsilon=None")
    if epsilon is not None:
        if epsilon not in epsilons:
            raise ValueError(f"{attack!r} has results only at the epsilons {epsilons}. Received: epsilon={epsilon}")
        of_attack = of_attack[of_attack.epsilon == epsilon]
    clean = results[results.attack == CLEAN]
    return pd.concat([clean, of_attack]) if attack != CLEAN else clean


def matrix_table(
    results: pd.DataFrame, attack: str, value: str = "accuracy", epsilon: float | None = None
) -> pd.DataFrame:
    """The transfer matrix itself under one attack: a row for each source, clean images first; a column for each target.

    Args:
        results: As `transfer_matrix` gives it, whatever the names.
        attack: As `robustness_table` takes it.
        value: As `robustness_table` takes it.
        epsilon: As `robustness_table` takes it.

    Raises:
        ValueError: As `robustness_table` does.
    """
    rows = _chosen(results, attack, epsilon)
    rows = rows.assign(source=rows.source.where(rows.attack != CLEAN, CLEAN))
    return rows.pivot_table(index="source", columns="target", values=value, sort=False)


def with_uncertainty(
    results: pd.DataFrame, table: Callable[[pd.DataFrame, str], pd.DataFrame], value: str = "accuracy"
) -> pd.DataFrame:
    """A table of accuracies with their uncertainty, as strings for printing.

    Args:
        results: As `transfer_matrix` gives it; or with a column `fold` or `seed`, and several of them.
        table: A function of results and a column that returns the table of that column, such as `robustness_table`.
        value: "accuracy" or "one_off_accuracy".

    Returns:
        The table, as strings: "65.8% (61.4 to 69.9)" with the 95 % interval for one fold; for several "65.8% ± 1.2
        (n = 5)", the mean and the standard deviation over them. A mean over several partners has the mean of their
        intervals, which is wide enough: they are measured on the same images.

    Example:
        >>> with_uncertainty(results, lambda rows, column: robustness_table(rows, "pgd", column, epsilon=0.1))
    """
    repeats = [name for name in REPEATS if name in results and results[name].nunique() > 1]
    if repeats:
        each = [table(rows, value) for _, rows in results.groupby(repeats)]
        stacked = pd.concat(each, keys=range(len(each)))
        levels = list(range(1, stacked.index.nlevels))
        groups = stacked.groupby(level=levels if len(levels) > 1 else levels[0], sort=False)
        rates, second, third = groups.mean(), 100 * groups.std(), groups.count()
        template = "{:.1%} ± {:.1f} (n = {:.0f})"
    else:
        rates, second, third = (100 * table(results, f"{value}{end}") for end in ("", "_low", "_high"))
        rates, template = rates / 100, "{:.1%} ({:.1f} to {:.1f})"
    return pd.DataFrame(
        {
            name: [
                "" if pd.isna(rate) else template.format(rate, here, there)
                for rate, here, there in zip(rates[name], second[name], third[name], strict=True)
            ]
            for name in rates
        },
        index=rates.index,
    )


def compare_schemes(predictions: Predictions, first: str, second: str) -> pd.DataFrame:
    """Compares two schemes network by network on the same images, with McNemar's exact test.

    Clean images are compared with clean ones, white box with white box, and the examples of one scheme's partners with
    those of the other's. On an unseen model's examples, and on every other rung source by source, both schemes see the
    same examples. `compare_ladder` compares whole rungs.

    Args:
        predictions: As `measure` gives them, with sources and targets named as `with_views` takes them.
        first: One scheme.
        second: Another.

    Returns:
        A frame with a row for each network, attack, epsilon and source, with the columns `network`, `view`, `attack`,
        `epsilon`, `source_group` (what stands before the `/` in a source's name, without the target's scheme),
        `source_network`, `<first>` and `<second>` (the accuracies), and those of `statistics.Paired`.

    Raises:
        ValueError: If a scheme was not measured, or the two have no cells in common.

    Example:
        >>> compare_schemes(predictions, "undefended", "satm").query("view == 'holdout' and p_value < 0.05")
    """
    cells = with_views(predictions.cells.assign(place=range(len(predictions.cells))))
    cells["source_group"] = [
        "" if group == scheme else group.removesuffix(f".{scheme}")
        for group, scheme in zip(_parsed(cells.source).scheme, cells.scheme, strict=True)
    ]
    keys = ["network", "view", "attack", "epsilon", "source_group", "source_network"]
    sides = [cells[cells.scheme == scheme].set_index(keys).place for scheme in (first, second)]
    common = sides[0].index.intersection(sides[1].index, sort=False)
    if common.empty:
        raise ValueError(
            f"Two schemes can be compared only if both were measured; there are {sorted(set(cells.scheme))}. "
            f"Received: {first!r} and {second!r}"
        )
    correct = predictions.predicted == predictions.labels
    rows = []
    for key in common:
        pair = [correct[side[key]] for side in sides]
        rates = {scheme: float(side.mean()) for scheme, side in zip((first, second), pair, strict=True)}
        rows.append({**dict(zip(keys, key, strict=True)), **rates, **compare_paired(*pair)._asdict()})
    return pd.DataFrame(rows)


def read_results(path: str | Path) -> pd.DataFrame:
    """Reads `results.csv` as it was written: empty sources are empty strings, and empty numbers are NaN.

    Intervals and rungs that the file lacks are computed again.
    """
    rates = ("accuracy", "one_off_accuracy")
    numbers = [f"{name}{end}" for name in rates for end in ("", "_low", "_high")]
    results = read_csv(path, keep_default_na=False, na_values={name: [""] for name in [*numbers, *REPEATS]})
    for name in rates:
        if f"{name}_low" not in results:
            low, high = wilson_interval(results[name] * results.images, results.images)
            results = results.assign(**{f"{name}_low": low, f"{name}_high": high})
    return results if "rung" in results else results.assign(rung=rungs_of(results.source, results.target))
