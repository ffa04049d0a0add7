"""The class that every target predicted for every image: all accuracies, tables and tests are counted from these."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from satm_tf.evaluation.rungs import RUNGS, rungs_of
from satm_tf.evaluation.statistics import wilson_interval
from satm_tf.metrics import accuracy, confusion_matrix, one_off_accuracy
from satm_tf.storage import atomic_file

CLEAN = "clean"
NOT_MEASURED = -1
"""Instead of a predicted class, for an image that a cell leaves out: querying all images would cost too much."""


class Cell(NamedTuple):
    """One figure of a transfer matrix."""

    attack: str
    epsilon: float
    source: str
    target: str


_CELL = list(Cell._fields)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The classes predicted for the same images under several attacks.

    Attributes:
        cells: A row for each attack, epsilon, source and target, with these columns. Clean images have the attack
            "clean", epsilon 0 and an empty source. The column `rung`, unless given, is what `rung_of` returns for the
            pair.
        predicted: Integers `[cells, images]`, the classes predicted; `NOT_MEASURED` for an image that was left out.
        labels: int32 `[images]`, the true classes.
        num_classes: Number of classes.

    Example:
        >>> predictions = measure(sources={"a": a}, targets={"a": a, "b": b}, dataset=test, attacks={"pgd": pgd})
        >>> predictions.correct("pgd", 0.1, source="a", target="b").mean()
        0.43
    """

    cells: pd.DataFrame
    predicted: NDArray[np.integer]
    labels: NDArray[np.int32]
    num_classes: int

    def __post_init__(self) -> None:
        if "rung" not in self.cells:
            rungs = rungs_of(self.cells.source, self.cells.target)
            object.__setattr__(self, "cells", self.cells.assign(rung=rungs))

    def frame(self, ordered: bool = True) -> pd.DataFrame:
        """The accuracies of every cell, with Wilson's 95 % intervals, as `transfer_matrix` describes them."""
        matrices = [confusion_matrix(self.labels[row >= 0], row[row >= 0], self.num_classes) for row in self.predicted]
        images = (self.predicted >= 0).sum(axis=1)
        columns: dict[str, Any] = {}
        for name, rate in (("accuracy", accuracy), ("one_off_accuracy", one_off_accuracy)):
            rates = np.array([rate(matrix) for matrix in matrices], float)
            if name == "one_off_accuracy" and not ordered:
                rates[:] = np.nan
            low, high = wilson_interval(rates * images, images)
            columns |= {name: rates, f"{name}_low": low, f"{name}_high": high}
        return self.cells.reset_index(drop=True).assign(**columns, images=images)

    def row(self, attack: str, epsilon: float, source: str, target: str) -> NDArray[np.integer]:
        """The classes predicted in one cell, integers `[images]`.

        Raises:
            KeyError: If there is no such cell.
        """
        row = self._rows.get((attack, epsilon, source, target))
        if row is None:
            raise KeyError(f"No predictions under {attack!r}, {epsilon:g}, from {source!r} on {target!r}.")
        return self.predicted[row]

    @cached_property
    def _rows(self) -> dict[tuple[str, float, str, str], int]:
        """The row of each cell."""
        cells = self.cells[_CELL].itertuples(index=False, name=None)
        return {cell: row for row, cell in reversed(list(enumerate(cells)))}

    def correct(self, attack: str, epsilon: float, source: str, target: str) -> NDArray[np.bool_]:
        """Whether each image was classified correctly in one cell, bool `[images]`."""
        return self.row(attack, epsilon, source, target) == self.labels

    def worst(
        self, target: str, rungs: Collection[str] = tuple(RUNGS), epsilon: float | None = None
    ) -> NDArray[np.bool_]:
        """Whether a target withstands all attackers of some rungs, image by image.

        Args:
            target: The target.
            rungs: The rungs; the whole ladder if none are given. Rungs that were not measured are ignored.
            epsilon: Leaves out cells of a larger epsilon; None takes all.

        Returns:
            bool, for each image that all of these cells were measured on: whether it is right under every one.

        Raises:
            KeyError: If nothing was measured on these rungs.

        Example:
            >>> predictions.worst("satm/vgg", ["unseen", "same_scheme"]).mean()
            0.31
        """
        right, measured = self.withstands(target, rungs, epsilon)
        return right[measured]

    def withstands(
        self, target: str, rungs: Collection[str], epsilon: float | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """As `worst`, for all images `[images]`; and which of them all of these cells were measured on, `[images]`."""
        chosen = (self.cells.target == target) & self.cells.rung.isin(rungs)
        if epsilon is not None:
            chosen &= self.cells.epsilon <= epsilon
        if not chosen.any():
            raise KeyError(f"{target!r} was not measured on any of the rungs {', '.join(rungs)}.")
        predicted = self.predicted[chosen.to_numpy()]
        return (predicted == self.labels).all(axis=0), (predicted != NOT_MEASURED).all(axis=0)

    def confusion(self, attack: str, epsilon: float, source: str, target: str) -> NDArray[np.int64]:
        """The confusion matrix of one cell, `[classes, classes]`: rows are true classes, columns predicted ones."""
        row = self.row(attack, epsilon, source, target)
        return confusion_matrix(self.labels[row >= 0], row[row >= 0], self.num_classes)

    def save(self, path: str | Path) -> None:
        """Writes one compressed `.npz` file, atomically; each source's predictions can be read alone."""
        arrays: dict[str, Any] = {
            name: self.cells[name].to_numpy(float if name == "epsilon" else str) for name in (*_CELL, "rung")
        }
        codes, names = pd.factorize(self.cells.source)
        arrays |= {f"predicted_{code}": self.predicted[codes == code] for code in range(len(names))}
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, labels=self.labels, num_classes=self.num_classes, **arrays)

    @classmethod
    def load(cls, path: str | Path | IO[bytes], sources: Collection[str] | None = None) -> Predictions:
        """Reads what `save` wrote.

        Args:
            path: The file, or the file opened.
            sources: The sources whose cells to read, "" for clean images; None for all. The rest of the file is not
                read.

        Raises:
            ValueError: If the file does not hold predictions, is truncated, or lacks a source.

        Example:
            >>> Predictions.load("results/predictions.npz", sources=["", "holdout/resnet"]).frame()
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                cells = pd.DataFrame({name: file[name] for name in (*_CELL, "rung") if name in file or name in _CELL})
                codes, names = pd.factorize(cells.source)
                chosen = [code for code, name in enumerate(names) if sources is None or name in sources]
                if not chosen or len(chosen) < len(set(sources or ())):
                    raise ValueError(f"There are predictions only of the sources {list(names)}. Received: {sources}")
                kept = np.isin(codes, chosen)
                if "predicted" in file:  # Older files hold all sources in one array.
                    predicted = file["predicted"][kept]
                else:
                    parts = [file[f"predicted_{code}"] for code in chosen]
                    # From the order of sources back to that of cells.
                    predicted = np.concatenate(parts)[np.argsort(np.argsort(codes[kept], kind="stable"))]
                return cls(cells[kept].reset_index(drop=True), predicted, file["labels"], int(file["num_classes"]))
        except (KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"This file does not hold predictions; delete it. Received: {path} ({error})") from error


def concatenate(parts: list[Predictions]) -> Predictions:
    """The cells of several measurements of the same images, in order.

    Raises:
        ValueError: If the labels of the images are not the same.
    """
    first = parts[0]
    for part in parts:
        if not np.array_equal(part.labels, first.labels) or part.num_classes != first.num_classes:
            raise ValueError("Only predictions for the same images can be concatenated; their labels differ.")
    cells = pd.concat([part.cells for part in parts], ignore_index=True)
    return Predictions(cells, np.concatenate([part.predicted for part in parts]), first.labels, first.num_classes)
