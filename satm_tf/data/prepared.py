"""Images decoded and resized once, in memory-mapped files that training reads fast.

A prepared folder holds the pixels of image files and nothing else. Labels, folds and splits stay where they were, so
one folder serves every fold and every target: a loader reads the tables, and `attach` replaces the files with their
pixels.

The pixels are NumPy arrays in memory-mapped files, so any image is fetched by row, and a prepared data set is shuffled
over all images, as the files are, into exactly the same batches. Reading does not compare checksums, because that would
take longer than the reading; running `pack` again does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from satm_tf import storage
from satm_tf.data.account import Account
from satm_tf.data.examples import Examples, ImageData
from satm_tf.data.reading import decodable, file_reader
from satm_tf.data.shards import Place, PreparedImages, Source, claim, read_index, read_kind, write_shard

SHARD_SIZE = 512
"""Images per file: 77 MB at 224 x 224, and the most work that a kill can lose."""

NOT_DECODED = "does not decode"


def pack(
    examples: Iterable[Examples],
    folder: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str],
    image_size: int | tuple[int, int],
    crop: float | None = None,
) -> Account:
    """Decodes, resizes and packs the files of examples.

    Packing resumes after a kill, and does nothing if all is packed: files that a whole shard holds unchanged are not
    packed again. Each existing shard is read and its checksum compared, so packing again verifies. A shard appears
    whole or not at all.

    Args:
        examples: The examples whose files to pack; a file in several of them is packed once.
        folder: Where to write; created if it is missing.
        root: The folder that the files are in; packed images are found by their paths relative to it.
        image_size: Height and width, or one number for both.
        crop: As `batches` takes it.

    Returns:
        The account of the files: those that do not decode are `unreadable`, all others are used.

    Raises:
        ValueError: if the examples are not files, a file is outside `root`, `folder` holds images prepared with other
            options, or another process is packing into it.

    Example:
        >>> data = adience.load("adience")
        >>> account = pack([data.train, data.validation, data.test], "adience_224", root="adience", image_size=224)
        >>> data = attach(data, "adience_224", root="adience")
    """
    folder = Path(folder).expanduser()
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    files = _merge(examples)
    sources = _sources(files.paths, root)
    with storage.lock(folder):
        claim(folder, {"image_size": list(size), "crop": crop})
        index = _pack(files, sources, folder, size, crop)
    unreadable = {source[0]: NOT_DECODED for source in sources if index[source] is None}
    return Account(rows=len(sources), used=len(sources) - len(unreadable), unreadable=unreadable)


def _pack(
    files: Examples, sources: list[Source], folder: Path, size: tuple[int, int], crop: float | None
) -> dict[Source, Place | None]:
    """Packs the files that no whole shard holds; returns the position of each."""
    index, whole = read_index(folder, verify=True)
    todo = np.flatnonzero([source not in index for source in sources])
    found = decodable(tf.constant(todo), file_reader(files, size, crop)).prefetch(tf.data.AUTOTUNE)
    progress = tqdm(
        _in_place(found.as_numpy_iterator(), len(todo)),
        "preparing",
        total=len(sources),
        initial=len(sources) - len(todo),
        unit="image",
        disable=None,
    )
    pixels = iter(progress)
    numbers = (number for number in count() if number not in whole)
    for at in range(0, len(todo), SHARD_SIZE):
        chunk = [sources[row] for row in todo[at : at + SHARD_SIZE]]
        write_shard(folder, next(numbers), chunk, islice(pixels, len(chunk)))
    progress.close()
    return read_index(folder)[0]


def attach(data: ImageData, folder: str | os.PathLike[str], *, root: str | os.PathLike[str]) -> ImageData:
    """The data set with prepared pixels instead of its files.

    Args:
        data: A data set of files.
        folder: Where `pack` put them.
        root: The folder that the files are in.

    Returns:
        The same examples, without those whose file did not decode; these are unreadable in the account.

    Raises:
        FileNotFoundError: if `folder` is not a prepared one.
        ValueError: if an earlier version prepared `folder`, or a file is not in it, was changed after it was packed, or
            lies outside `root`.

    Example:
        >>> data = attach(adience.load("adience", fold=1), "adience_224", root="adience")
    """
    folder = Path(folder).expanduser()
    height, width = read_kind(folder)["image_size"]
    index, _ = read_index(folder)
    unreadable: dict[str, str] = {}

    def prepared(examples: Examples) -> Examples:
        sources = _sources(examples.paths, root)
        absent = [source[0] for source in sources if source not in index]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(sources)} files have changed or are not packed in {folder}; run "
                f"satm_tf.prepare again. Received: {absent[0]}"
            )
        unreadable.update({source[0]: NOT_DECODED for source in sources if index[source] is None})
        kept = [index[source] is not None for source in sources]
        places = np.array([place for source in sources if (place := index[source])], np.int64).reshape(-1, 2)
        images = PreparedImages(folder, (height, width), places[:, 0], places[:, 1])
        some = examples.select(np.array(kept, bool))
        return Examples(labels=some.labels, images=images, subjects=some.subjects)

    train, validation, test = (prepared(split) for split in (data.train, data.validation, data.test))
    account = data.account.without(unreadable)
    return replace(data, train=train, validation=validation, test=test, account=account)


def _merge(examples: Iterable[Examples]) -> Examples:
    paths, orientations = [], []
    for part in examples:
        if part.paths is None:
            raise ValueError("Only image files can be prepared. Received: decoded images")
        paths.append(part.paths)
        orientations.append(np.ones(len(part), np.uint8) if part.orientations is None else part.orientations)
    unique, first = np.unique(np.concatenate(paths), return_index=True)
    return Examples(labels=np.zeros(len(unique)), paths=unique, orientations=np.concatenate(orientations)[first])


def _sources(paths: NDArray[Any] | None, root: str | os.PathLike[str]) -> list[Source]:
    if paths is None:
        raise ValueError("Only image files can be prepared. Received: decoded images")
    inside = os.path.join(os.path.realpath(os.path.expanduser(root)), "")
    sources = []
    for path in paths.tolist():
        if not path.startswith(inside):
            raise ValueError(f"All files must be below the root, {inside}. Received: {path}")
        status = os.stat(path)
        sources.append((path.removeprefix(inside), status.st_size, status.st_mtime_ns))
    return sources


def _in_place(found: Iterator[tuple[int, NDArray[np.uint8]]], n: int) -> Iterator[NDArray[np.uint8] | None]:
    """The image at each of `n` positions, None if none was found."""
    following = next(found, None)
    for place in range(n):
        here = following is not None and following[0] == place
        yield following[1] if following and here else None
        following = next(found, None) if here else following
