"""Label leaking: adversarial images that are classified better than the clean ones they were made from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from satm_tf.evaluation.predictions import CLEAN, Cell, Predictions
from satm_tf.evaluation.rungs import QUERIES
from satm_tf.evaluation.statistics import compare_paired

_Key = TypeVar("_Key", bound=Hashable)


class Leak(NamedTuple):
    """The adversarial images of one cell compared with the clean images that they were made from."""

    accuracy: float  # on the adversarial images, in [0, 1]
    clean_accuracy: float
    difference: float  # the first minus the second
    p_value: float  # McNemar's exact test on the same images, two-sided, not corrected
    leaks: bool  # the adversarial ones are classified better, significantly after correction for all comparisons


def against_clean(clean: NDArray[np.bool_], adversarial: Mapping[_Key, NDArray[np.bool_]]) -> dict[_Key, Leak]:
    """The rule for label leaking, for one target: paired, and corrected for the number of comparisons.

    Args:
        clean: Whether the target classifies each clean image correctly, bool `[images]`.
        adversarial: The same for the same images under each attack, each of which is one comparison. It leaks if it is
            classified better than the clean images, with McNemar's exact p below `SIGNIFICANCE` (0.01) over the number
            of comparisons (Bonferroni). To test several repeats or sources as one, concatenate their images, and the
            clean ones likewise.

    Raises:
        ValueError: If the images are not the same number, or there are none.
    """
    found = {}
    for key, correct in adversarial.items():
        compared = compare_paired(clean, correct)
        found[key] = Leak(
            accuracy=float(np.mean(correct)),
            clean_accuracy=float(np.mean(clean)),
            difference=compared.difference,
            p_value=compared.p_value,
            leaks=compared.rises(comparisons=len(adversarial)),
        )
    return found


def label_leaking(predictions: Predictions, *repeats: Predictions) -> pd.DataFrame:
    """Finds adversarial images that are classified better than the clean ones they were made from.

    No honest perturbation helps. If one does, the networks have learnt to encode the label in it for each other, and
    the gain does not carry over to unseen models. The rule is that of `against_clean`; the comparisons that it
    corrects for are all adversarial cells of one target.

    Args:
        predictions: As `measure` gives them, with clean images.
        *repeats: The same cells for other folds or seeds. Their images are tested together with the first ones.

    Returns:
        A frame with a row for each adversarial cell except those of queries: `attack`, `epsilon`, `source` and
        `target`, and the fields of `Leak`: `accuracy`, `clean_accuracy`, `difference`, `p_value` and `leaks`.

    Raises:
        KeyError: If clean images were not measured, or a repeat lacks a cell.
        TypeError: If it receives something other than predictions, such as the frame of `results.csv`.

    Example:
        >>> label_leaking(measured).query("leaks")

    Source:
        Kurakin et al., "Adversarial Machine Learning at Scale", ICLR 2017, Section 4.4 ("label leaking").
    """
    pooled = (predictions, *repeats)
    for each in pooled:
        if not isinstance(each, Predictions):
            raise TypeError(
                "Label leaking is tested image by image: pass the predictions of `measure` (`Predictions.load` reads "
                f"predictions.npz). Received: {type(each).__name__}"
            )

    def correct(cell: Cell) -> NDArray[np.bool_]:
        return np.concatenate([each.correct(*cell) for each in pooled])

    # A query attack does not know which label it could encode in an image.
    asked = predictions.cells.rung == QUERIES
    cells = [Cell(*row) for row in predictions.cells[~asked][list(Cell._fields)].itertuples(index=False)]
    found: dict[Cell, Leak] = {}
    for target in dict.fromkeys(cell.target for cell in cells):
        adversarial = {cell: correct(cell) for cell in cells if cell.target == target and cell.attack != CLEAN}
        if adversarial:
            found |= against_clean(correct(Cell(CLEAN, 0.0, "", target)), adversarial)
    rows = [{**cell._asdict(), **found[cell]._asdict()} for cell in cells if cell in found]
    return pd.DataFrame(rows, columns=[*Cell._fields, *Leak._fields]).astype({"leaks": bool})
