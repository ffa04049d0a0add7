"""Image files without labels, to attack a model on or to try it on."""

from __future__ import annotations

import os

import pandas as pd

from satm_tf.data import intake, splits
from satm_tf.data.examples import ImageData


def load(root: str | os.PathLike[str]) -> ImageData:
    """Reads all image files of a folder and of the folders below it, sorted by path.

    Args:
        root: The folder.

    Returns:
        The data set: every image is in `test`, with the label 0, which means nothing; `train` and `validation` are
        empty, and there are no class names.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if it holds no image that can be used.

    Example:
        >>> data = unlabelled.load("pictures")
        >>> dataset = batches(data.test, image_size=224, batch_size=32)
    """
    root = intake.existing_folder(root)
    paths = sorted(intake.files_below(root))
    left_out = list(map(intake.fate_by_name, paths))
    table = pd.DataFrame({"path": paths, "label": 0, "subject": paths, "side": "test", "left_out": left_out})
    return splits.to_measure(*intake.admit(root, table), ())
