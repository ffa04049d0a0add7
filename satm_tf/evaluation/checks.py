"""Checks that tell a defence from what only looks like one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from satm_tf.evaluation.predictions import CLEAN
from satm_tf.evaluation.statistics import REPEATS


def label_leaking(frame: pd.DataFrame) -> pd.DataFrame:
    """Finds adversarial images that are classified better than clean ones.

    No honest perturbation helps: where one does, the networks have agreed to write the label into it, and the gain is
    worth nothing against a stranger.

    Args:
        frame: As `transfer_matrix` gives it. Columns beyond its own, such as a scheme, are kept; rows of several folds
            or seeds are told apart by the columns `fold` and `seed`.

    Returns:
        The adversarial rows with two more columns: `clean_accuracy`, the target's, and `leaks`, whether the adversarial
        rate is above it by more than a 95 % interval of the difference of two independent shares allows.

    Source:
        Kurakin et al., "Adversarial Machine Learning at Scale", ICLR 2017, Section 4.4 ("label leaking").
    """
    keys = ["target", *(name for name in REPEATS if name in frame)]
    clean = frame[frame.attack == CLEAN].rename(columns={"accuracy": "clean_accuracy"})
    rows = frame[frame.attack != CLEAN].merge(clean[[*keys, "clean_accuracy"]], on=keys, how="left", validate="m:1")
    variance = sum(rate * (1 - rate) / rows.images for rate in (rows.accuracy, rows.clean_accuracy))
    rows["leaks"] = rows.accuracy - rows.clean_accuracy > 1.96 * np.sqrt(variance)
    return rows
