"""The images that a configuration describes."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from satm_tf import data
from satm_tf.data import formats
from satm_tf.experiment.config import Config, DataConfig
from satm_tf.experiment.run_folder import RunFolder


def load_data(config: DataConfig, folder: RunFolder, seed: int) -> data.ImageData:
    """The images, in their splits.

    Args:
        config: What to load.
        folder: The run folder, where synthetic faces are written unless another place is given.
        seed: The seed of the splits.

    Raises:
        ValueError: If something is missing from the configuration, or does not fit the data.
        FileNotFoundError: If the data is missing.
    """
    if config.root is None and config.format != "synthetic_faces":
        raise ValueError(f"The format {config.format!r} needs a folder: --data.root FOLDER. Received: none")
    if config.fold is None and config.format in ("adience", "synthetic_faces"):
        raise ValueError("Adience needs a fold to test on, 0 to 4. Received: data.fold=null")
    given = {**vars(config), "seed": seed}
    # These limits apply to splits, those of the loaders to files.
    options = {name: given[name] for name in formats.options(config.format) if name in given and name != "limit"}
    images = formats.load(config.format, config.root or folder.synthetic_faces, **options)
    if config.prepared:
        images = data.prepared.attach(images, config.prepared, root=config.root or folder.synthetic_faces)
    limited = {part: getattr(images, part).limit(limit, seed) for part, limit in _limits(config).items() if limit}
    return dataclasses.replace(images, **limited)


def _limits(config: DataConfig) -> dict[str, int | None]:
    return {
        "train": config.limit,
        "validation": config.limit and max(1, round(config.limit * config.validation_share)),
        "test": config.test_limit,
    }


class Shares(NamedTuple):
    """The training images in two parts that share no image and no subject.

    Attributes:
        defence: The images of the defence, and of surrogates that know them.
        surrogates: The images that the defence never sees.
    """

    defence: data.Examples
    surrogates: data.Examples


def divide(images: data.ImageData, share: float, seed: int) -> Shares:
    """Withholds a share of the training images from the defence, by subject if subjects are known.

    Args:
        images: The images.
        share: The share of images, or of subjects, in [0, 1).
        seed: Seed of the draw.

    Raises:
        ValueError: If the share holds no image, or a file of the test images.
    """
    train = images.train
    known = np.arange(len(train)).astype(str) if train.subjects is None else train.subjects
    subjects = np.unique(known)
    chosen = np.random.default_rng([seed, 1]).permutation(subjects)[: round(share * len(subjects))]
    withheld = np.isin(known, chosen)
    shares = Shares(train.select(~withheld), train.select(withheld))
    if share and not (len(shares.surrogates) and len(shares.defence)):
        raise ValueError(f"data.surrogate_share leaves one side without images. Received: {share} of {len(train)}")
    if shares.surrogates.paths is not None and images.test.paths is not None:
        common = sorted(set(shares.surrogates.paths.tolist()) & set(images.test.paths.tolist()))
        if common:
            raise ValueError(f"Surrogates must not be trained on test images. Received: {len(common)}, {common[0]!r}")
    return shares


class Sizes(NamedTuple):
    """How many images there are in each split."""

    train: int
    validation: int
    test: int


def look_at_data(config: DataConfig, folder: RunFolder, seed: int) -> tuple[data.ImageData, Sizes]:
    """The images as `load_data` returns them and their numbers, without writing any.

    If synthetic faces have not been drawn yet, it draws forty of the same classes and discards them; the numbers are
    those of the full set, to within a subject or two.

    Raises:
        ValueError: As `load_data` does.
        FileNotFoundError: As `load_data` does.
    """
    root = Path(config.root or folder.synthetic_faces)
    if config.format != "synthetic_faces" or (root.is_dir() and any(root.iterdir())):
        images = load_data(config, folder, seed)
        defence = divide(images, config.surrogate_share, seed).defence
        return images, Sizes(len(defence), len(images.validation), len(images.test))
    few = dataclasses.replace(
        config,
        num_subjects=min(config.num_subjects, 40),
        images_per_subject=min(config.images_per_subject, 1),
    )
    with tempfile.TemporaryDirectory() as scratch:
        images = load_data(dataclasses.replace(few, root=str(Path(scratch) / "faces")), folder, seed)
    whole = config.num_subjects * config.images_per_subject
    kept = round(config.validation_share * 4 * whole / 5)
    sizes = {"train": 4 * whole // 5 - kept, "validation": kept, "test": whole - 4 * whole // 5}
    sizes = {part: min(size, _limits(config)[part] or size) for part, size in sizes.items()}
    return images, Sizes(**{**sizes, "train": round((1 - config.surrogate_share) * sizes["train"])})


def make_batches(examples: data.Examples, config: Config, **options: Any) -> tf.data.Dataset:
    """Batches of some examples at the configuration's image size; other options as `data.batches` takes them."""
    return data.batches(
        examples, image_size=config.data.image_size, cache=config.data.cache, **{"batch_size": 128, **options}
    )


def arrays(examples: data.Examples, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """All of some examples at the configuration's image size, float32 `[n, height, width, 3]`, and their labels."""
    pixels, labels = zip(*make_batches(examples, config).as_numpy_iterator(), strict=True)
    return np.concatenate(pixels), np.concatenate(labels)
