"""Any table of images: for data sets whose labels are in a file.

FairFace comes with a table whose columns `file` and `age` you rename to `path` and `label`; IMDB-WIKI exports have the
person's name, which goes into `subject`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from satm_tf.configurable import unknown_name
from satm_tf.data import intake, splits
from satm_tf.data.examples import ImageData


def load(
    table: str | os.PathLike[str] | pd.DataFrame,
    root: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    ordered: bool = False,
    fold: str | int | None = None,
    test_share: float = 0.1,
    validation_share: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """Reads the images that a table names.

    Args:
        table: A CSV file or a data frame with the columns `path` (below `root`) and `label` (a class name, or its index
            in `class_names`), and, if known, `subject` (who or what the image shows) and `fold`. Other columns are
            ignored. A row without a label, or without a subject if there is that column, is left out and counted. A CSV
            file must be UTF-8 text.
        root: The folder of the images.
        class_names: The classes in the order of their labels; None for those in the table, in order of number or
            alphabet.
        ordered: Whether the classes themselves have that order, as age groups do, so that one-off accuracy has a
            meaning.
        fold: The fold to test on; required if the table has folds, and refused if it has none.
        test_share: The part of the images to test on, in (0, 1), drawn by subject if the table has no folds.
        validation_share: The part of the other images to validate on, in (0, 1), drawn by subject.
        seed: The seed of the random splits.

    Returns:
        The data set; no subject and no image is in two of its splits. An image in two folds, even under different
        names, is used in the first; one with two labels is left out.

    Raises:
        FileNotFoundError: if the CSV file or the folder is missing.
        ValueError: if the table is damaged or a column is missing, a label is not a class, the fold is unknown, a
            subject is in two folds, no image can be used, or there are fewer than two classes.

    Example:
        >>> data = tables.load("labels.csv", "images", class_names=("young", "old"), ordered=True)
    """
    root = intake.existing_folder(root)
    frame = _read(table)
    names, label = _labels(frame["label"], class_names)
    if ordered and class_names is None:
        raise ValueError(
            "The table does not say the order of the classes; with `ordered`, give `class_names`. Received: None"
        )
    folds = sorted(set(frame["fold"])) if "fold" in frame else ["None"]
    if str(fold) not in folds:
        raise unknown_name("fold", fold, folds)
    subject = frame.get("subject", frame["path"])
    left_out = np.select([label.lt(0), subject.eq("")], ["no label", "no subject"], "")
    images = frame.filter(["path", "subject"]).assign(label=label, left_out=left_out, side=frame.get("fold", ""))
    rows, account = intake.admit(root, images)
    if "subject" in rows:
        splits.check_exclusive(rows["side"], subject=rows["subject"])
    shares = {"validation": validation_share}
    if "fold" not in frame:
        shares = {"test": test_share, **shares}
    rows["side"] = np.where(rows["side"].eq(str(fold)), "test", "train")
    return splits.assemble(rows, account, names, ordered, shares, seed)


def _read(table: str | os.PathLike[str] | pd.DataFrame) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        frame = table.astype(object).where(table.notna(), "").astype(str)
    elif Path(table).expanduser().is_file():
        frame = intake.read_table(Path(table).expanduser())
    else:
        raise FileNotFoundError(f"The table is missing. Received: {table}")
    for column in ("path", "label"):
        if column not in frame:
            raise ValueError(f"A table of images needs the columns path and label. Received: {list(frame.columns)}")
    return frame.apply(lambda column: column.str.strip())


def _labels(text: pd.Series, class_names: Sequence[str] | None) -> tuple[tuple[str, ...], pd.Series]:
    written = sorted(set(text) - {""})
    numeric = all(name.isdecimal() for name in written)
    names = tuple(class_names or (sorted(written, key=int) if numeric else written))
    labels = {name: label for label, name in enumerate(names)}
    if numeric and not set(written) <= set(names):
        labels = {name: int(name) for name in written if int(name) < len(names)}
    for name in written:
        if name not in labels:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"Each label must be one of {len(names)} classes. {hint}Received: {name!r}")
    return names, text.map(labels).fillna(-1).astype(np.int32)
