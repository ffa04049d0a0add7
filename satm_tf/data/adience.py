"""Adience: unfiltered faces for age and gender classification, read from the user's licensed copy.

Expected under `root`, as the data set is published:

    fold_0_data.txt ... fold_4_data.txt                                        tab-separated, one face per row
    aligned/<user_id>/landmark_aligned_face.<face_id>.<original_image>         816 x 816 JPEGs
    faces/<user_id>/coarse_tilt_aligned_face.<face_id>.<original_image>

The published fold files have 19,487 rows, which name 19,370 images of 2,284 subjects (`face_id`), in photographs of 168
owners (`user_id`). Folds and splits are by owner, which is stricter than by subject, because a photograph may show
several.

Source:
    Eidinger, Enbar and Hassner, "Age and Gender Estimation of Unfiltered Faces", IEEE TIFS 2014.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from satm_tf.configurable import look_up
from satm_tf.data import intake, splits
from satm_tf.data.examples import ImageData

AGE_GROUPS = ((0, 2), (4, 6), (8, 12), (15, 20), (25, 32), (38, 43), (48, 53), (60, 100))
"""The eight age groups, first and last year of each, youngest first."""

LABELS = tuple(f"{first}-{last}" for first, last in AGE_GROUPS)
"""The names of the age groups, in the order of their labels."""

GENDERS = ("female", "male")
"""The names of the genders, in the order of their labels."""

FOLDS = range(5)

_COLUMNS = ("user_id", "original_image", "face_id", "age", "gender")
_VARIANTS = {"aligned": "landmark_aligned_face", "faces": "coarse_tilt_aligned_face"}
_AGES = {f"({first}, {last})": label for label, (first, last) in enumerate(AGE_GROUPS)}
_OTHER_AGES = {"(38, 42)": 5, "(38, 48)": 5, "(27, 32)": 4, "(25, 23)": 4, "(8, 23)": 2}


class _Target(NamedTuple):
    class_names: tuple[str, ...]
    ordered: bool
    published: dict[str, int]
    others: dict[str, int]


def _nearest_group(year: int) -> int:
    distances = [max(first - year, year - last, 0) for first, last in AGE_GROUPS]
    return distances.index(min(distances))


_TARGETS = {
    "age": _Target(LABELS, True, _AGES, _OTHER_AGES | {str(year): _nearest_group(year) for year in range(101)}),
    "gender": _Target(GENDERS, False, {"f": 0, "m": 1}, {}),
}


def load(
    root: str | os.PathLike[str],
    *,
    fold: int = 0,
    target: str = "age",
    variant: str = "aligned",
    exact_labels: bool = False,
    validation_share: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """Reads Adience, with one fold for testing and the other four for training and validation.

    Labels outside the eight groups are mapped to one of them or left out, and the account counts both: a single year
    goes to the group that contains it or else to the nearest (the younger of two equally near), the ranges `(38, 42)`
    and `(38, 48)` to 38-43, `(27, 32)` and `(25, 23)` to 25-32, `(8, 23)` to 8-12; any other is left out, as are
    unknown genders when the target is the gender.

    Published accuracies mostly use other images: Levi and Hassner's code keeps the rows whose label is exactly one of
    the eight, and an image that is listed twice counts twice. `exact_labels` does the same. The test folds then have
    4316, 3101, 3339, 2975 and 3693 images.

    Args:
        root: The folder with the fold files and the images.
        fold: The fold to test on, 0 to 4.
        target: `"age"` (eight ordered groups) or `"gender"`.
        variant: `"aligned"` or `"faces"`, the two crops that the data set comes in.
        exact_labels: Whether to leave out all labels but the eight groups, and to use each row as often as it is
            listed.
        validation_share: The part of the other four folds' images to validate on, in (0, 1), drawn by the photographs'
            owner.
        seed: Seed for drawing the validation images.

    Returns:
        The data set; no subject, no owner and no image is in two of its splits.

    Raises:
        FileNotFoundError: if the folder, or one of the five fold files, is missing.
        ValueError: for an unknown option, a fold file that is damaged or lacks a column, an owner in two folds, no
            usable image, or fewer than two classes to learn.

    Example:
        >>> data = adience.load("~/adience", fold=0)
        >>> print(data.account)
    """
    if fold not in FOLDS:
        raise ValueError(f"`fold` must be one of Adience's five folds, 0 to 4. Received: {fold!r}")
    labels = look_up("target", target, _TARGETS)
    if exact_labels:
        labels = labels._replace(others={})
    prefix = look_up("variant", variant, _VARIANTS)
    root = intake.existing_folder(root)
    table = pd.concat([_read_fold(root, side) for side in FOLDS], ignore_index=True)
    names = variant + "/" + table["user_id"] + f"/{prefix}." + table["face_id"]
    table["path"] = names + "." + table["original_image"]
    text = table[target].str.strip()
    label = text.map(labels.published | labels.others)
    table = table.assign(
        written=text,
        subject=table["user_id"] + "/" + table["face_id"],
        label=label.fillna(-1).astype(np.int32),
        left_out=(f"{target} " + text.map(repr)).where(label.isna(), ""),
    )
    rows, account = intake.admit(root, table, keep_repeats=exact_labels)
    splits.check_exclusive(rows["side"], owner=rows["user_id"])
    pairs = Counter(
        (text, labels.class_names[label]) for text, label in zip(rows["written"], rows["label"], strict=True)
    )
    mapped = {pair: pairs[pair] for pair in sorted(pairs) if pair[0] not in labels.published}
    rows["side"] = np.where(rows["side"].eq(fold), "test", "train")
    return splits.assemble(
        rows,
        replace(account, mapped=mapped),
        labels.class_names,
        labels.ordered,
        {"validation": validation_share},
        seed,
        owners=rows["user_id"],
    )


def _read_fold(root: Path, fold: int) -> pd.DataFrame:
    path = root / f"fold_{fold}_data.txt"
    if not path.is_file():
        raise FileNotFoundError(
            f"Adience has five fold files, fold_0_data.txt to fold_4_data.txt, next to the folders aligned/ and "
            f"faces/. Point `root` to the folder that holds them. Received: {root}, without {path.name}"
        )
    # No quoting: the files do not use it, so a quotation mark in a name is an ordinary character.
    table = intake.read_table(path, delimiter="\t", quoting=csv.QUOTE_NONE)
    lacking = [name for name in _COLUMNS if name not in table]
    if lacking:
        raise ValueError(f"{path} lacks the columns {lacking}. Received: {list(table.columns)}")
    return table[list(_COLUMNS)].assign(side=fold)
