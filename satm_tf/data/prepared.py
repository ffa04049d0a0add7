"""Images decoded and resized once, in memory-mapped files that training reads fast.

A prepared folder holds the pixels of image files and nothing else. Labels, folds and splits stay where they were, so
one folder serves every fold and every target: a loader reads the tables, and `attach` replaces the files with their
pixels. A prepared data set gives exactly the batches that its files do, shuffled over all images too. Reading does not
compare checksums, because that would take longer than the reading; running `pack` again does.

    prepared.json       height and width of the images, and the central part of each that was used
    images-00000.npy    images, uint8 RGB `[n, height, width, 3]`, as `numpy.load` reads them
    images-00000.json   the files they come from, with size and time, and the checksum of the array's file
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from satm_tf import storage
from satm_tf.data.account import Account
from satm_tf.data.decoding import decodable
from satm_tf.data.examples import Examples, ImageData

SHARD_SIZE = 512
"""Images per file: 77 MB at 224 x 224, and the most work that a kill can lose."""

NOT_DECODED = "does not decode"

Source = tuple[str, int, int]
"""A file below the root, its size in bytes and its modification time in nanoseconds."""

Place = tuple[int, int]
"""The number of a shard, and of an image in it."""

_KIND = "prepared.json"
_LAYOUT = {"shards": "npy"}
# An open map holds a file descriptor, of which a process often may have 1,024.
_OPEN_SHARDS = 128


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
    sources = _sources(files, root)
    with storage.lock(folder):
        _claim(folder, {"image_size": list(size), "crop": crop})
        packed, whole = _read_index(folder, verify=True)
        todo = np.flatnonzero([source not in packed for source in sources])
        found = decodable(tf.constant(todo), files, size, crop).prefetch(tf.data.AUTOTUNE)
        images = _in_place(found.as_numpy_iterator(), len(todo))
        numbers = (number for number in count() if number not in whole)
        done = len(sources) - len(todo)
        with tqdm(images, "preparing", len(sources), initial=done, unit="image", disable=None) as progress:
            pixels = iter(progress)
            for at in range(0, len(todo), SHARD_SIZE):
                chunk = [sources[row] for row in todo[at : at + SHARD_SIZE]]
                _write_shard(folder, next(numbers), chunk, islice(pixels, len(chunk)))
        index, _ = _read_index(folder)
    unreadable = {source[0]: NOT_DECODED for source in sources if index[source] is None}
    return Account(rows=len(sources), used=len(sources) - len(unreadable), unreadable=unreadable)


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
    height, width = _read_kind(folder)["image_size"]
    index, _ = _read_index(folder)
    unreadable: dict[str, str] = {}

    def prepared(examples: Examples) -> Examples:
        sources = _sources(examples, root)
        absent = [source[0] for source in sources if source not in index]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(sources)} files have changed or are not packed in {folder}; run "
                f"satm_tf.prepare again. Received: {absent[0]}"
            )
        unreadable.update({source[0]: NOT_DECODED for source in sources if index[source] is None})
        places = {row: place for row, source in enumerate(sources) if (place := index[source])}
        shards, within = np.array(list(places.values()), np.int64).reshape(-1, 2).T
        some = examples.select(list(places))
        return replace(
            some, paths=None, orientations=None, images=PreparedImages(folder, (height, width), shards, within)
        )

    train, validation, test = (prepared(split) for split in (data.train, data.validation, data.test))
    account = data.account.without(unreadable)
    return replace(data, train=train, validation=validation, test=test, account=account)


def _merge(examples: Iterable[Examples]) -> Examples:
    """Each file of several examples once, sorted."""
    found: dict[str, int] = {}
    for part in examples:
        orientations = np.ones(len(part), np.uint8) if part.orientations is None else part.orientations
        found |= zip(_files(part), orientations.tolist(), strict=True)
    paths = sorted(found)
    return Examples(labels=np.zeros(len(paths)), paths=paths, orientations=[found[path] for path in paths])


def _files(examples: Examples) -> list[str]:
    if examples.paths is None:
        raise ValueError("Only image files can be prepared. Received: decoded images")
    return examples.paths.tolist()


def _sources(examples: Examples, root: str | os.PathLike[str]) -> list[Source]:
    inside = os.path.join(os.path.realpath(os.path.expanduser(root)), "")
    sources = []
    for path in _files(examples):
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


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Images in a prepared folder, fetched by row from memory-mapped files: image n is `places[n]` of `shards[n]`."""

    folder: Path
    size: tuple[int, int]
    shards: NDArray[np.int64]
    places: NDArray[np.int64]

    @cached_property
    def _mapped(self) -> Callable[[int], NDArray[np.uint8]]:
        return lru_cache(_OPEN_SHARDS)(lambda shard: np.load(_shard(self.folder, shard), mmap_mode="r"))

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, height, width, 3)`."""
        return (len(self.shards), *self.size, 3)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images of `rows`, uint8 `[k, height, width, 3]`."""
        images = np.empty((len(rows), *self.size, 3), np.uint8)
        for image, shard, place in zip(images, self.shards[rows], self.places[rows], strict=True):
            image[...] = self._mapped(shard)[place]
        return images


def _claim(folder: Path, kind: dict[str, Any]) -> None:
    """Marks a folder as prepared images of a kind, and deletes files that a killed process left half written."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _KIND).is_file():
        storage.write_json(folder / _KIND, kind | _LAYOUT)
    if (held := _read_kind(folder)) != kind:
        raise ValueError(
            f"{folder} holds images prepared with other options, {held}; choose another folder. Received: {kind}"
        )
    for left in folder.glob(".images-*"):
        left.unlink()


def _read_kind(folder: Path) -> dict[str, Any]:
    """The properties that the images of a prepared folder share; an error if it is none, or of an earlier version."""
    path = folder / _KIND
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no prepared images here; create them with python -m satm_tf.prepare. Received: {folder}"
        )
    kind = storage.read_json(path)
    if not kind.items() >= _LAYOUT.items():
        raise ValueError(
            f"{folder} was prepared by an earlier version, in another file format; delete it and run satm_tf.prepare "
            f"again. Received: {kind}"
        )
    return {name: value for name, value in kind.items() if name not in _LAYOUT}


def _read_index(folder: Path, *, verify: bool = False) -> tuple[dict[Source, Place | None], set[int]]:
    """The position of each file, None for one that does not decode, and the numbers of the whole shards.

    A shard is whole if it has its length and, to `verify`, its checksum.
    """
    index: dict[Source, Place | None] = {}
    whole = set()
    entries = sorted(folder.glob("images-*.json"))
    for entry in tqdm(entries, "verifying", unit="shard", disable=None if verify else True):
        number = int(entry.stem.removeprefix("images-"))
        held = storage.read_json(entry)
        shard = _shard(folder, number)
        if not shard.is_file() or shard.stat().st_size != held["bytes"]:
            continue
        if verify and storage.sha256(shard) != held["sha256"]:
            continue
        whole.add(number)
        index |= {(path, size, time): (number, place) for place, (path, size, time) in enumerate(held["files"])}
        index |= dict.fromkeys(map(tuple, held["unreadable"]))
    return index, whole


def _write_shard(folder: Path, number: int, sources: list[Source], images: Iterable[NDArray[np.uint8] | None]) -> None:
    """Writes a shard of files and the image of each, None for one that does not decode, whole or not at all."""
    found = list(zip(sources, images, strict=True))
    pixels = np.array([image for _, image in found if image is not None], np.uint8)
    shard = _shard(folder, number)
    with storage.atomic_file(shard) as partial:
        np.save(partial, pixels)
        if not np.array_equal(np.load(partial), pixels):
            raise OSError(f"The images read back from the disk differ from those written. Received: {partial}")
        entry = {
            "bytes": partial.stat().st_size,
            "sha256": storage.sha256(partial),
            "files": [source for source, image in found if image is not None],
            "unreadable": [source for source, image in found if image is None],
        }
        # Between the two renames, no entry of an older shard with this number may exist.
        shard.with_suffix(".json").unlink(missing_ok=True)
    storage.write_json(shard.with_suffix(".json"), entry)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"images-{number:05d}.npy"
