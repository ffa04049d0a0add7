"""The figures of a report: each a PNG with its numbers as CSV and a description in words.

They are narrow, so that their text stays readable on a phone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from satm_tf.storage import atomic_file

# Okabe and Ito's colours, which colour-blind readers can distinguish, without their yellow, which is too pale for a
# line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_WIDTH, _DPI = 4.6, 160


@dataclass(frozen=True)
class Picture:
    """A figure on disk.

    Attributes:
        path: The PNG; its numbers are next to it, as CSV.
        alt: What it shows, in words, for readers who cannot see it.
        caption: The caption.
    """

    path: Path
    alt: str
    caption: str


def heat_map(table: pd.DataFrame, path: Path, caption: str) -> Picture:
    """Accuracies with a row for each source and a column for each target; white-box cells are framed.

    Args:
        table: As `matrix_table` gives it, shares in [0, 1].
        path: The PNG to write.
        caption: The caption.
    """
    rows, columns = table.shape
    figure = Figure(figsize=(max(_WIDTH, 2.2 + 0.5 * columns), 1.5 + 0.34 * rows), layout="constrained")
    axes = figure.subplots()
    axes.imshow(table.to_numpy(float), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for y, x in np.ndindex(rows, columns):
        rate = table.iloc[y, x]
        if not np.isnan(rate):
            axes.text(x, y, f"{100 * rate:.0f}", ha="center", va="center", color="white" if rate > 0.55 else "black")
        if table.index[y] == table.columns[x]:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2))
    axes.set_xticks(range(columns), _plain(table.columns), rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(rows), _plain(table.index), fontsize=8)
    axes.set(xlabel="target", ylabel="examples of")
    table.to_csv(path.with_suffix(".csv"))
    alt = (
        f"Heat map of accuracies in percent, {rows} rows of sources and {columns} columns of targets, from "
        f"{100 * np.nanmin(table):.0f} to {100 * np.nanmax(table):.0f}. The numbers are in the table."
    )
    return _write(figure, path, alt, caption)


def lines(
    table: pd.DataFrame,
    path: Path,
    caption: str,
    *,
    x: str,
    y: str,
    dashed: Sequence[str] = (),
    rate: bool = False,
    groups: Mapping[str, int] | None = None,
) -> Picture:
    """Lines over a common axis.

    Args:
        table: A column for each line; the index is the axis.
        path: The PNG to write.
        caption: The caption.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        dashed: The columns that are dashed.
        rate: Whether the values are shares, drawn in percent from 0 to 100.
        groups: The colour number of each column, if lines share colours.
    """
    figure = Figure(figsize=(_WIDTH, 2.9 + 0.17 * table.shape[1]), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(table.columns):
        colour = COLOURS[(groups or {}).get(name, place) % len(COLOURS)]
        style, scale = "--" if name in dashed else "-", 100 if rate else 1
        axes.plot(table.index, scale * table[name], style, color=colour, label=_plain([name])[0], marker="o", ms=3)
    axes.set(xlabel=x, ylabel=f"{y}, %" if rate else y)
    if rate:
        axes.set_ylim(-2, 102)
    if x == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", fontsize=8, frameon=False, ncols=1)
    table.to_csv(path.with_suffix(".csv"))
    ends = [f"{name} from {table[name].dropna().iloc[0]:.3g} to {table[name].dropna().iloc[-1]:.3g}" for name in table]
    return _write(figure, path, f"Lines of {y} over {x}: {'; '.join(ends)}.", caption)


def ladder(table: pd.DataFrame, labels: Mapping[str, str], path: Path, caption: str) -> Picture:
    """Bars of each scheme's accuracy on clean images and under each attacker, with intervals.

    Args:
        table: As `ladder_table` gives it; each row is a bar of every group.
        labels: The names of the groups.
        path: The PNG to write.
        caption: The caption.
    """
    columns = list(dict.fromkeys(table.columns.get_level_values(0)))
    rows, thickness = len(table), 0.8 / len(table)
    figure = Figure(figsize=(_WIDTH, 1.1 + len(columns) * (0.16 + 0.17 * rows)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(table.index):
        figures = table.loc[name].unstack().reindex(columns) * 100
        heights = np.arange(len(columns)) + (place - (rows - 1) / 2) * thickness
        reach = np.stack([figures.accuracy - figures.low, figures.high - figures.accuracy]).clip(min=0)
        colour = COLOURS[place % len(COLOURS)]
        error = {"elinewidth": 0.8, "ecolor": "#444444"}
        axes.barh(heights, figures.accuracy, 0.92 * thickness, xerr=reach, color=colour, error_kw=error, label=name)
        for height, share, high in zip(heights, figures.accuracy, figures.high, strict=True):
            if not np.isnan(share):
                axes.text(high + 1.5, height, f"{share:.0f}", va="center", fontsize=7)
    axes.set_yticks(range(len(columns)), [labels[column].replace(" ", "\n", 1) for column in columns], fontsize=8)
    axes.set(xlim=(0, 108), xlabel="accuracy, %", xticks=range(0, 101, 20))
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, _plain(names), loc="outside upper left", fontsize=8, frameon=False, ncols=3)
    table.to_csv(path.with_suffix(".csv"))
    accuracies = table.xs("accuracy", axis="columns", level=1) * 100
    told = [
        f"{labels[column]}: " + ", ".join(f"{name} {x:.0f}" for name, x in accuracies[column].dropna().items())
        for column in columns
    ]
    return _write(figure, path, f"Bars of accuracy in percent. {'; '.join(told)}.", caption)


def scatter(table: pd.DataFrame, path: Path, caption: str, *, x: str, y: str) -> Picture:
    """A named point for each row.

    Args:
        table: Two columns of shares in [0, 1].
        path: The PNG to write.
        caption: The caption.
        x: Label of the first column.
        y: Label of the second.
    """
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for place, (name, (first, second)) in enumerate(table.iterrows()):
        axes.plot(100 * first, 100 * second, "o", color=COLOURS[place % len(COLOURS)])
        below = place % 2
        axes.annotate(
            _plain([name])[0], (100 * first, 100 * second), (0, -11 if below else 6), textcoords="offset points",
            fontsize=8, ha="center",
        )  # fmt: skip
    axes.margins(0.25)
    axes.set(xlabel=f"{x}, %", ylabel=f"{y}, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    table.to_csv(path.with_suffix(".csv"))
    told = [f"{name} {100 * first:.0f} and {100 * second:.0f}" for name, (first, second) in table.iterrows()]
    return _write(figure, path, f"Points of {x} and {y} in percent: {'; '.join(told)}.", caption)


def confusion(matrix: Any, names: Sequence[str], path: Path, caption: str) -> Picture:
    """A confusion matrix, shaded by the share of each true class.

    Args:
        matrix: Integers `[classes, classes]`; rows are true classes.
        names: The classes.
        path: The PNG to write.
        caption: The caption.
    """
    table = pd.DataFrame(matrix, index=list(names), columns=list(names))
    shares = table.div(table.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    side = max(_WIDTH, 0.42 * len(names) + 1)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for y, x in np.ndindex(*table.shape):
        if table.iloc[y, x]:
            colour = "white" if shares[y, x] > 0.55 else "black"
            axes.text(x, y, f"{table.iloc[y, x]}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), _plain(names), rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), _plain(names), fontsize=8)
    axes.set(xlabel="predicted", ylabel="true class")
    table.to_csv(path.with_suffix(".csv"))
    right = np.trace(table.to_numpy()) / max(table.to_numpy().sum(), 1)
    return _write(figure, path, f"Confusion matrix of {len(names)} classes, {right:.1%} on the diagonal.", caption)


def surface(table: pd.DataFrame, path: Path, caption: str) -> Picture:
    """The loss over the plane of the gradient's sign and random signs.

    Args:
        table: As `loss_surface` gives it.
        path: The PNG to write.
        caption: The caption.
    """
    grid = table.pivot(index="along_random", columns="along_gradient", values="loss")
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    shown = axes.pcolormesh(grid.columns, grid.index, grid.to_numpy(), cmap="viridis", shading="nearest")
    axes.plot(0, 0, "o", color="white", markeredgecolor="black")
    axes.set(xlabel="along the gradient's sign", ylabel="along random signs")
    figure.colorbar(shown, label="mean loss")
    table.to_csv(path.with_suffix(".csv"), index=False)
    middle = grid.index[len(grid) // 2]
    along = grid.loc[middle]
    alt = (
        f"The loss around images, from {along.iloc[0]:.3g} against the gradient over {grid.loc[middle, middle]:.3g} at "
        f"the images to {along.iloc[-1]:.3g} along it."
    )
    return _write(figure, path, alt, caption)


def _plain(names: Iterable[Any]) -> list[str]:
    """Escapes texts so that Matplotlib finds no formula in them."""
    return [str(name).replace("$", r"\$") for name in names]


def _write(figure: Figure, path: Path, alt: str, caption: str) -> Picture:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")
    return Picture(path, alt, caption)
