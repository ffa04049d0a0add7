"""MNIST-style IDX files: MNIST, Fashion-MNIST, KMNIST and EMNIST come in them.

Expected under `root`, plain or gzip-compressed (`.gz`):

    train-images-idx3-ubyte  train-labels-idx1-ubyte  t10k-images-idx3-ubyte  t10k-labels-idx1-ubyte

Source:
    LeCun, Cortes and Burges, "The MNIST database of handwritten digits", which describes the format.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satm_tf.data import intake, splits
from satm_tf.data.account import Account
from satm_tf.data.examples import Examples, ImageData

FASHION_MNIST = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""The class names of Fashion-MNIST, whose files do not hold them."""

MAX_BYTES = 2**32
"""The most bytes that one file may unpack to."""

_UNSIGNED_BYTE = 0x08


def load(
    root: str | os.PathLike[str],
    *,
    validation_share: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageData:
    """Reads a training and a test set from IDX files.

    Args:
        root: The folder with the four files.
        validation_share: The part of the training images to validate on, in (0, 1).
        seed: Seed for drawing the validation images and those that `limit` keeps.
        limit: Maximum number of images from the training file, and from the test file; None for all.
        class_names: The name of each label; None for "0", "1" and so on up to the largest label in the training file.

    Returns:
        The data set, its grey images as three equal channels, without an order between the classes.

    Raises:
        FileNotFoundError: if the folder or one of the files is missing.
        ValueError: if a file is not what its name says (magic number, sizes, length), if images and labels differ in
            number, a label has no class, or there are fewer than two classes.

    Example:
        >>> data = idx.load("fashion-mnist", class_names=idx.FASHION_MNIST)
        >>> len(data.train), len(data.validation), len(data.test)
        (54000, 6000, 10000)
    """
    root = intake.existing_folder(root)
    train_images, train_labels = _read_pair(root, "train")
    test_images, test_labels = _read_pair(root, "t10k")
    names = tuple(class_names or map(str, range(int(train_labels.max(initial=0)) + 1)))
    for part, labels in (("train", train_labels), ("t10k", test_labels)):
        if labels.max(initial=0) >= len(names):
            raise ValueError(
                f"The {part} labels under {root} must be below {len(names)}, the number of classes. "
                f"Received: {labels.max()}"
            )
    rows = len(train_labels) + len(test_labels)
    train = Examples(labels=train_labels, images=_rgb(train_images))
    test = Examples(labels=test_labels, images=_rgb(test_images))
    if limit is not None:
        train, test = train.limit(limit, seed), test.limit(limit, seed)
    used = len(train) + len(test)
    account = Account(rows, used, left_out={"over the limit": rows - used} if used < rows else {})
    splits.check_classes(train.labels, names, account)
    validation = splits.by_subject(np.arange(len(train)), validation_share, seed)
    return ImageData(train.select(~validation), train.select(validation), test, names, ordered=False, account=account)


def _rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.broadcast_to(grey[..., np.newaxis], (*grey.shape, 3))


def _read_pair(root: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images, labels = _read(root, f"{part}-images-idx3-ubyte", 3), _read(root, f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels) or not images.size:
        raise ValueError(
            f"Every {part} image under {root} needs a label. Received: {len(images)} images, {len(labels)} labels"
        )
    return images, labels


def _read(root: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    spellings = [
        root / (spelling + suffix) for spelling in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")
    ]
    path = next(filter(Path.is_file, spellings), None)
    if path is None:
        raise FileNotFoundError(
            "An IDX data set is four files, train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte "
            f"and t10k-labels-idx1-ubyte, each plain or .gz. Received: {root}, without {name}"
        )
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            zeros, kind, rank, *shape = struct.unpack(f">HBB{dimensions}I", file.read(4 + 4 * dimensions))
            if (zeros, kind, rank) != (0, _UNSIGNED_BYTE, dimensions):
                raise ValueError(
                    f"{path} must start with the magic number 0000{_UNSIGNED_BYTE:02x}{dimensions:02x}. "
                    f"Received: {zeros:04x}{kind:02x}{rank:02x}"
                )
            expected = math.prod(shape)
            if expected > MAX_BYTES:
                raise ValueError(f"{path} may hold at most {MAX_BYTES:,} bytes. Received: {expected:,}")
            # Reading one byte more than the header says detects a longer file without unpacking it further.
            contents = file.read(expected + 1)
        except (struct.error, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"This file is truncated or is not an IDX file: {error}. Received: {path}") from None
    if len(contents) != expected:
        held = "more" if len(contents) > expected else f"one of {len(contents)}"
        raise ValueError(f"{path} must hold {' x '.join(map(str, shape))} bytes by its header. Received: {held}")
    return np.frombuffer(contents, np.uint8).reshape(shape)
