"""UTKFace: faces whose age, gender and race are in their names.

Expected in `root` or in folders below it, cropped or not:

    <age>_<gender>_<race>_<date and time>.jpg
    <age>_<gender>_<race>_<date and time>.jpg.chip.jpg

Gender is 0 for male and 1 for female, race 0 to 4. The data set does not say which images show the same person.

Source:
    Zhang, Song and Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder", CVPR 2017. The images are
    for research use only.
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd

from satm_tf.configurable import look_up
from satm_tf.data import intake, splits
from satm_tf.data.adience import AGE_GROUPS, GENDERS, LABELS
from satm_tf.data.examples import ImageData

OTHER_PARTS = "a name without age, gender, race and time"
BETWEEN = "an age between two groups"

_NAME = r"(?P<age>\d{1,3})_(?P<gender>[01])_[0-4]_\d+\.jpg(?:\.chip\.jpg)?"
_GROUP_OF_AGE = {age: label for label, (first, last) in enumerate(AGE_GROUPS) for age in range(first, last + 1)}
_TARGETS = {
    "age": (LABELS, _GROUP_OF_AGE),
    "gender": (GENDERS, {0: GENDERS.index("male"), 1: GENDERS.index("female")}),
}


def load(
    root: str | os.PathLike[str],
    *,
    target: str = "age",
    test_share: float = 0.1,
    validation_share: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """Reads UTKFace with Adience's eight age groups, or the gender, as labels.

    Equal files are found and stay in one split; those whose names say different ages (or genders, if that is the
    target) are left out. In the crop of 9,780 images in circulation, 99 images have several names, 72 of them with
    several ages. If age is the target, ages between two groups or above 100 are left out.

    Args:
        root: The folder of the images.
        target: `"age"` (eight ordered groups) or `"gender"`.
        test_share: The part of the images to test on, in (0, 1).
        validation_share: The part of the other images to validate on, in (0, 1).
        seed: The seed of the random splits.

    Returns:
        The data set; no image is in two of its splits, but a person may be.

    Raises:
        FileNotFoundError: if the folder is missing.
        ValueError: for an unknown target, no usable image, or fewer than two classes to learn.

    Example:
        >>> data = utkface.load("UTKFace", target="gender")
        >>> print(data.account)
    """
    class_names, labels = look_up("target", target, _TARGETS)
    root = intake.existing_folder(root)
    paths = pd.Series(list(intake.files_below(root)), dtype=str)
    names = paths.map(os.path.basename)
    said = pd.to_numeric(names.str.extract(f"^{_NAME}$")[target])
    left_out = names.map(intake.fate_by_name)
    left_out = left_out.mask(left_out.eq("") & said.isna(), OTHER_PARTS)
    label = said.fillna(-1).astype(np.int32)
    table = pd.DataFrame({"path": paths, "label": label, "left_out": left_out, "side": "train"})
    rows, account = intake.admit(root, table)
    # Only now: an image aged 10 by one name and 13 by another is left out, though 13 alone is in no group.
    between = ~rows["label"].isin(list(labels))
    if between.any():
        account = account.without(left_out={BETWEEN: int(between.sum())})
    rows = rows[~between].assign(label=lambda kept: kept["label"].map(labels))
    shares = {"test": test_share, "validation": validation_share}
    return splits.assemble(rows, account, class_names, target == "age", shares, seed)
