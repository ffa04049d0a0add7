"""The images that a configuration describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from satm_tf import data
from satm_tf.config import Config, DataConfig


def load_data(config: DataConfig, folder: Path, seed: int) -> data.ImageData:
    """The images, in their splits.

    Args:
        config: What to load.
        folder: Where synthetic faces are written, if no other place is named.
        seed: What the splits follow from.

    Raises:
        ValueError: If something is missing from the configuration, or does not fit the data.
        FileNotFoundError: If the data is missing.
    """
    if config.root is None and config.format != "synthetic_faces":
        raise ValueError(f"Data of the format {config.format!r} must be given as --data.root FOLDER. Received: none")
    root = Path(config.root or folder / "synthetic_faces")
    split: dict[str, Any] = {"validation_share": config.validation_share, "seed": seed}
    classes: dict[str, Any] = {"class_names": config.class_names, **split}
    unsplit: dict[str, Any] = {"ordered": config.ordered, "test_share": config.test_share, **classes}

    def read_adience() -> data.ImageData:
        if config.fold is None:
            raise ValueError("Adience is tested on one of its folds, 0 to 4. Received: data.fold=null")
        return data.adience.load(root, fold=config.fold, target=config.target, variant=config.variant, **split)

    def write_faces() -> data.ImageData:
        data.synthetic_faces.write_adience(
            root, num_subjects=config.num_subjects, images_per_subject=config.images_per_subject, seed=seed
        )
        return read_adience()

    def read_table() -> data.ImageData:
        if config.table is None:
            raise ValueError("Data of the format 'table' needs the CSV file as --data.table FILE. Received: none")
        return data.tables.load(config.table, root, fold=config.fold, **unsplit)

    formats: dict[str, Callable[[], data.ImageData]] = {
        "synthetic_faces": write_faces,
        "adience": read_adience,
        "idx": lambda: data.idx.load(root, **classes),
        "folder": lambda: data.folder.load(root, **unsplit),
        "table": read_table,
    }
    images = formats[config.format]()
    if config.prepared:
        images = data.prepared.attach(images, config.prepared, root=root)
    limits = {
        "train": config.limit,
        "validation": config.limit and max(1, round(config.limit * config.validation_share)),
        "test": config.test_limit,
    }
    limited = {part: getattr(images, part).limit(limit, seed) for part, limit in limits.items() if limit}
    return dataclasses.replace(images, **limited)


def make_batches(examples: data.Examples, config: Config, **options: Any) -> tf.data.Dataset:
    """Batches of some examples at the configuration's image size; other options as `data.batches` takes them."""
    return data.batches(
        examples, image_size=config.data.image_size, cache=config.data.cache, **{"batch_size": 128, **options}
    )
