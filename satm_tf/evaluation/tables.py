"""The tables that the paper prints, as views of a transfer matrix."""

from __future__ import annotations

import pandas as pd

from satm_tf.evaluation.transfer import CLEAN

HOLDOUT = "holdout"


def robustness_table(results: pd.DataFrame, attack: str, value: str = "classification_rate") -> pd.DataFrame:
    """Sets the schemes side by side: clean, white box, black box from the other networks, black box from holdouts.

    Args:
        results: As `transfer_matrix` gives it, with sources and targets named `<scheme>/<network>`, and holdouts
            `holdout/<network>`.
        attack: The attack to show.
        value: The column to show.

    Returns:
        A frame indexed by `network` and `scheme`, with the columns "clean", "white box", "partners" (the mean over the
        other networks of the same scheme) and one for each holdout. A column for which there are no rows is missing.

    Raises:
        ValueError: If the results have no such attack.

    Example:
        >>> robustness_table(results, "fgsm").loc[("vgg", "satm"), "partners"]

    Source:
        Tables 2, 4 and 5 of Liao (SATM).
    """
    rows = results[results.attack.isin([CLEAN, attack])].copy()
    if attack not in set(rows.attack):
        raise ValueError(
            f"There are no results of this attack, only of {sorted(set(results.attack))}. Received: {attack}"
        )
    rows[["scheme", "network"]] = rows.target.str.split("/", expand=True)
    source = rows.source.str.split("/")
    rows["source_scheme"], rows["source_network"] = source.str[0], source.str[-1]
    rows = rows[rows.scheme != HOLDOUT]
    rows = rows[(rows.attack == CLEAN) | (rows.source_scheme == rows.scheme) | (rows.source_scheme == HOLDOUT)]

    def column(row: pd.Series) -> str:
        if row.attack == CLEAN:
            return CLEAN
        if row.source_scheme == HOLDOUT:
            return str(row.source_network)
        return "white box" if row.source_network == row.network else "partners"

    rows["column"] = rows.apply(column, axis=1)
    table = rows.pivot_table(index=["network", "scheme"], columns="column", values=value, sort=False)
    first = [name for name in (CLEAN, "white box", "partners") if name in table]
    table = table[[*first, *(name for name in table if name not in first)]]
    return table.sort_index(level="network", sort_remaining=False, kind="stable").rename_axis(columns=None)
