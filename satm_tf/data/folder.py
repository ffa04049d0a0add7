"""Any folder of images with a sub-folder for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from satm_tf.configurable import unknown_name
from satm_tf.data import intake, splits
from satm_tf.data.examples import ImageData

SUFFIXES = intake.SUFFIXES
"""The suffixes of image files, in upper or lower case: `.jpg`, `.jpeg`, `.png` and `.gif`."""

_SIDES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


def load(
    root: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    ordered: bool = False,
    test_share: float = 0.1,
    validation_share: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """Reads a folder of images, `<class>/...` or `train/<class>/...`, `test/<class>/...` and so on.

    `train` and `test` folders, if there are any, are the splits, and so is a `validation` (or `val`) folder; without
    one, part of `train` is drawn. Without such folders, both parts are drawn. Each image counts as a separate subject:
    if a data set shows a subject more than once, name the subjects in a table and use `tables.load`. Equal files are
    one subject. Images in two classes are left out; if an image is in two given splits, its training copy is left out.

    Args:
        root: The folder.
        class_names: The sub-folders in the order of their labels; None for the alphabetical one.
        ordered: Whether the classes themselves have that order, as age groups do, so that one-off accuracy has a
            meaning.
        test_share: The part of the images to test on, in (0, 1), if the folder does not define it.
        validation_share: The part of the other images to validate on, in (0, 1), if the folder does not define it.
        seed: The seed of the random splits.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: if the folder is missing or has no sub-folder.
        ValueError: if the sub-folders are not `class_names`, the name of one is not UTF-8, no image can be used, or
            there are fewer than two classes.

    Example:
        >>> data = folder.load("faces", class_names=("child", "adult", "elder"), ordered=True)
    """
    root = intake.existing_folder(root)
    tops = class_folders(root)
    given = {top: _SIDES[top] for top in tops if top in _SIDES} if {"train", "test"} <= set(tops) else {"": "train"}
    found = sorted({name for top in given for name in class_folders(root / top)})
    names = tuple(class_names or found)
    if ordered and class_names is None:
        raise ValueError(
            "Alphabetical order is not the order of the classes; with `ordered`, give `class_names`. Received: None"
        )
    for name in found:
        if name not in names:
            raise unknown_name("class folder", name, names)
    if lacking := set(names) - set(found):
        raise FileNotFoundError(f"Each class needs a folder under {root}. Received: none for {sorted(lacking)}")
    table = pd.DataFrame(
        [
            (path, names.index(name), side, intake.fate_by_name(path))
            for top, side in given.items()
            for name in class_folders(root / top)
            for path in intake.files_below(root, os.path.join(top, name))
        ],
        columns=["path", "label", "side", "left_out"],
    )
    rows, account = intake.admit(root, table)
    drawn = {"test": test_share, "validation": validation_share}
    shares = {side: share for side, share in drawn.items() if side not in given.values()}
    return splits.assemble(rows, account, names, ordered, shares, seed)


def class_folders(root: Path) -> list[str]:
    """The names of the visible sub-folders of a folder, sorted; an error if there are none."""
    names = [item.name for item in os.scandir(root) if item.is_dir() and not item.name.startswith(".")]
    if not names:
        raise FileNotFoundError(
            f"A folder of images needs a sub-folder for each class. Received: {root}, which has none"
        )
    for name in names:
        if intake.printable(name) != name:
            raise ValueError(f"The name of a class must be UTF-8; rename its folder. Received: {root}, {name!a}")
    return sorted(names)
