"""Any folder of images with a sub-folder for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from satm_tf.configurable import unknown_name
from satm_tf.data import intake, splits
from satm_tf.data.examples import ImageData

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")
"""The suffixes of image files, in upper or lower case."""

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
    tops = _folders(root)
    given = {top: _SIDES[top] for top in tops if top in _SIDES} if {"train", "test"} <= set(tops) else {"": "train"}
    found = sorted({name for top in given for name in _folders(root / top)})
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
            (path, names.index(name), name, side)
            for top, side in given.items()
            for name in _folders(root / top)
            for path in intake.files_below(root, os.path.join(top, name))
        ],
        columns=["path", "label", "raw", "side"],
    )
    named_so = table["path"].str.lower().str.endswith(SUFFIXES).astype(bool)
    table = table.assign(read_as=table["raw"], left_out=named_so.map({True: "", False: intake.OTHER_NAME}))
    rows, account = intake.admit(root, table)
    rows["subject"] = splits.joined(rows["file"], rows["image"])
    shares = {"test": test_share, "validation": validation_share}
    sides = splits.carve(
        rows["side"], rows["subject"], {side: shares[side] for side in shares if side not in given.values()}, seed
    )
    return splits.assemble(rows, account, sides, names, ordered)


def _folders(root: Path) -> list[str]:
    names = [item.name for item in os.scandir(root) if item.is_dir() and not item.name.startswith(".")]
    if not names:
        raise FileNotFoundError(
            f"A folder of images needs a sub-folder for each class. Received: {root}, which has none"
        )
    for name in names:
        if intake.printable(name) != name:
            raise ValueError(f"The name of a class must be UTF-8; rename its folder. Received: {root}, {name!a}")
    return sorted(names)
