"""The figures of a report: each a PNG with its numbers as CSV and a description in words.

They are narrow, so that their text stays readable on a phone. Every function takes the `path` of the PNG to write and
the `caption`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from satm_tf.storage import atomic_file

# Okabe and Ito's colours, which colour-blind readers can distinguish, without their yellow, which is too pale for a
# line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_WIDTH, _DPI, _SMALL = 4.6, 160, 8


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
    texts = table.map(lambda rate: "" if np.isnan(rate) else f"{100 * rate:.0f}")
    size = max(_WIDTH, 2.2 + 0.5 * columns), 1.5 + 0.34 * rows
    axes = _squares(table.to_numpy(float), texts, *size, aspect="auto")
    for y, x in np.argwhere(table.index.to_numpy()[:, None] == table.columns.to_numpy()):
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2))
    axes.set(xlabel="target", ylabel="examples of")
    alt = (
        f"Heat map of accuracies in percent, {rows} rows of sources and {columns} columns of targets, from "
        f"{100 * np.nanmin(table):.0f} to {100 * np.nanmax(table):.0f}. The numbers are in the table."
    )
    return _write(axes, table, path, alt, caption)


def lines(
    table: pd.DataFrame,
    path: Path,
    caption: str,
    *,
    x: str,
    y: str,
    dashed: Collection[str] = (),
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
    axes = _axes(_WIDTH, 2.9 + 0.17 * table.shape[1], grid="both")
    for place, name in enumerate(table.columns):
        colour = COLOURS[(groups or {}).get(name, place) % len(COLOURS)]
        style, scale = "--" if name in dashed else "-", 100 if rate else 1
        axes.plot(table.index, scale * table[name], style, color=colour, label=_plain([name])[0], marker="o", ms=3)
    axes.set(xlabel=x, ylabel=f"{y}, %" if rate else y)
    if rate:
        axes.set_ylim(-2, 102)
    if x == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.legend(loc="outside lower left", fontsize=_SMALL, frameon=False, ncols=1)
    ends = [f"{name} from {table[name].dropna().iloc[0]:.3g} to {table[name].dropna().iloc[-1]:.3g}" for name in table]
    return _write(axes, table, path, f"Lines of {y} over {x}: {'; '.join(ends)}.", caption)


def ladder(table: pd.DataFrame, labels: Mapping[str, str], path: Path, caption: str) -> Picture:
    """Bars of each row of a `ladder_table`, on clean images and under each attacker, with intervals.

    `labels` names the groups of bars, by the table's first level of columns.
    """
    columns = list(dict.fromkeys(table.columns.get_level_values(0)))
    rows, thickness = len(table), 0.8 / len(table)
    axes = _axes(_WIDTH, 1.1 + len(columns) * (0.16 + 0.17 * rows), grid="x")
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
    axes.set_yticks(range(len(columns)), [labels[column].replace(" ", "\n", 1) for column in columns], fontsize=_SMALL)
    axes.set(xlim=(0, 108), xlabel="accuracy, %", xticks=range(0, 101, 20))
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles, _plain(names), loc="outside upper left", fontsize=_SMALL, frameon=False, ncols=3)
    accuracies = table.xs("accuracy", axis="columns", level=1) * 100
    told = [
        f"{labels[column]}: " + ", ".join(f"{name} {x:.0f}" for name, x in accuracies[column].dropna().items())
        for column in columns
    ]
    return _write(axes, table, path, f"Bars of accuracy in percent. {'; '.join(told)}.", caption)


def scatter(table: pd.DataFrame, path: Path, caption: str, *, x: str, y: str) -> Picture:
    """A named point for each row of two columns of shares in [0, 1], with the axes' labels `x` and `y`."""
    axes = _axes(_WIDTH, 3.4, grid="both")
    for place, (name, (first, second)) in enumerate(table.iterrows()):
        axes.plot(100 * first, 100 * second, "o", color=COLOURS[place % len(COLOURS)])
        offset = (0, -11 if place % 2 else 6)
        text = {"textcoords": "offset points", "fontsize": _SMALL, "ha": "center"}
        axes.annotate(_plain([name])[0], (100 * first, 100 * second), offset, **text)
    axes.margins(0.25)
    axes.set(xlabel=f"{x}, %", ylabel=f"{y}, %")
    told = [f"{name} {100 * first:.0f} and {100 * second:.0f}" for name, (first, second) in table.iterrows()]
    return _write(axes, table, path, f"Points of {x} and {y} in percent: {'; '.join(told)}.", caption)


def confusion(matrix: Any, names: Sequence[str], path: Path, caption: str) -> Picture:
    """A confusion matrix of named classes, rows true ones, shaded by the share of each true class."""
    table = pd.DataFrame(matrix, index=list(names), columns=list(names))
    shares = table.div(table.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    side = max(_WIDTH, 0.42 * len(names) + 1)
    axes = _squares(shares, table.map(lambda count: str(count or "")), side, side, fontsize=_SMALL)
    axes.set(xlabel="predicted", ylabel="true class")
    right = np.trace(table.to_numpy()) / max(table.to_numpy().sum(), 1)
    alt = f"Confusion matrix of {len(names)} classes, {right:.1%} on the diagonal."
    return _write(axes, table, path, alt, caption)


def surface(table: pd.DataFrame, path: Path, caption: str) -> Picture:
    """The loss over the plane of the gradient's sign and random signs, as `loss_surface` gives it."""
    grid = table.pivot(index="along_random", columns="along_gradient", values="loss")
    axes = _axes(_WIDTH, 3.4)
    shown = axes.pcolormesh(grid.columns, grid.index, grid.to_numpy(), cmap="viridis", shading="nearest")
    axes.plot(0, 0, "o", color="white", markeredgecolor="black")
    axes.set(xlabel="along the gradient's sign", ylabel="along random signs")
    axes.figure.colorbar(shown, label="mean loss")
    middle = grid.index[len(grid) // 2]
    along = grid.loc[middle]
    alt = (
        f"The loss around images, from {along.iloc[0]:.3g} against the gradient over {grid.loc[middle, middle]:.3g} at "
        f"the images to {along.iloc[-1]:.3g} along it."
    )
    return _write(axes, table, path, alt, caption, index=False)


def _axes(width: float, height: float, grid: Literal["both", "x"] | None = None) -> Any:
    axes = Figure(figsize=(width, height), layout="constrained").subplots()
    if grid:
        axes.grid(alpha=0.3, axis=grid)
        axes.spines[["top", "right"]].set_visible(False)
    return axes


def _squares(
    shares: Any, texts: pd.DataFrame, width: float, height: float, *, fontsize: int | None = None, **options: Any
) -> Any:
    """A square for each cell of a table of texts, shaded by its share."""
    axes = _axes(width, height)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", **options)
    for (y, x), text in np.ndenumerate(texts):
        colour = "white" if shares[y, x] > 0.55 else "black"
        axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=fontsize)
    axes.set_xticks(range(texts.shape[1]), _plain(texts.columns), rotation=40, ha="right", fontsize=_SMALL)
    axes.set_yticks(range(len(texts)), _plain(texts.index), fontsize=_SMALL)
    return axes


def _plain(names: Iterable[Any]) -> list[str]:
    """Escapes texts so that Matplotlib finds no formula in them."""
    return [str(name).replace("$", r"\$") for name in names]


def _write(axes: Any, table: pd.DataFrame, path: Path, alt: str, caption: str, *, index: bool = True) -> Picture:
    table.to_csv(path.with_suffix(".csv"), index=index)
    with atomic_file(path) as temporary:
        axes.figure.savefig(temporary, dpi=_DPI, format="png")
    return Picture(path, alt, caption)
