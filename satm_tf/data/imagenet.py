"""ImageNet-style evaluation: validation images in a sub-folder for each synset, and a file that numbers the synsets.

Source:
    Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015. The 10,000 random validation
    images are Tramer et al.'s (ICLR 2018, section 4.1), whose Table 4 corresponds to the SATM paper's Table 7.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.configurable import unknown_name
from satm_tf.data import intake, splits
from satm_tf.data.examples import ImageData

CROP = 0.875
"""The central crop on which ImageNet networks are measured, 224 of 256 pixels: for `batches(crop=...)`."""


def load(
    root: str | os.PathLike[str], *, synsets: str | os.PathLike[str], count: int = 10_000, seed: int = 0
) -> ImageData:
    """Reads validation images to measure on; there are none for training or validation.

    Args:
        root: The folder, with the images in sub-folders named by synset: `n01440764/ILSVRC2012_val_00000293.JPEG`.
        synsets: The file that numbers the synsets: Keras's `imagenet_class_index.json`, or text with a synset and its
            number on each line, or with synsets and names in the order of their numbers (`LOC_synset_mapping.txt`).
        count: How many images to choose, all if there are fewer.
        seed: Seed of the choice.

    Returns:
        The data set; `train` and `validation` are empty. Images that were not chosen are left out and not opened.

    Raises:
        FileNotFoundError: if the folder or the file is missing.
        ValueError: if the file numbers no synsets from 0 on, a folder's synset is not in it, or no image can be used.

    Example:
        >>> data = imagenet.load("val", synsets="imagenet_class_index.json")
        >>> dataset = batches(data.test, image_size=224, batch_size=32, crop=imagenet.CROP)
    """
    root = intake.existing_folder(root)
    numbered = _read_synsets(Path(synsets).expanduser())
    labels = {synset: label for label, (synset, _) in enumerate(numbered)}
    paths = sorted(
        os.path.join(folder.name, file.name)
        for folder in os.scandir(root)
        if folder.is_dir()
        for file in os.scandir(folder.path)
        if not intake.fate_by_name(file.name)
    )
    synset = pd.Series([os.path.dirname(path) for path in paths], dtype=str)
    for name in synset.unique():
        if name not in labels:
            raise unknown_name("synset folder", name, labels)
    chosen = np.zeros(len(paths), bool)
    chosen[np.random.default_rng(seed).permutation(len(paths))[:count]] = True
    table = pd.DataFrame({"path": paths, "label": synset.map(labels), "subject": paths, "side": "test"})
    rows, account = intake.admit(root, table.assign(left_out=np.where(chosen, "", "not chosen")))
    return splits.to_measure(rows, account, tuple(name for _, name in numbered))


def top_errors(
    model: Callable[[tf.Tensor], tf.Tensor], dataset: tf.data.Dataset, ks: Sequence[int] = (1, 5)
) -> dict[int, float]:
    """The share of images whose class is not among a model's k best guesses.

    Args:
        model: Maps images `[batch, height, width, 3]` to logits `[batch, classes]`.
        dataset: Batches of images and labels.
        ks: How many guesses count, each at least 1.

    Returns:
        The error in [0, 1] for each k.

    Example:
        >>> top_errors(model, dataset)
        {1: 0.264, 5: 0.077}
    """
    accuracies = {k: keras.metrics.SparseTopKCategoricalAccuracy(k) for k in ks}
    for images, labels in dataset:
        logits = model(images)
        for accuracy in accuracies.values():
            accuracy.update_state(labels, logits)
    return {k: 1.0 - float(accuracy.result()) for k, accuracy in accuracies.items()}


def _read_synsets(path: Path) -> list[tuple[str, str]]:
    text = intake.read_text(path)
    try:
        entries = _number_synsets(text, json_file=path.suffix == ".json")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, or does not number synsets. Received: {error}") from None
    if not entries or set(entries) != set(range(len(entries))):
        raise ValueError(f"{path} must number synsets from 0 on, without a gap. Received: {len(entries)} numbers")
    return [entries[number] for number in range(len(entries))]


def _number_synsets(text: str, json_file: bool) -> dict[int, tuple[str, str]]:
    if json_file:
        return {int(number): (synset, name) for number, (synset, name) in json.loads(text).items()}
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    if all(line[-1].isdecimal() for line in lines):
        return {int(number): (synset, synset) for synset, number in lines}
    return {number: (line[0], line[-1]) for number, line in enumerate(lines)}
