"""The files of a prepared folder: what is in them, where, and whether they are whole.

prepared.json       height and width of the images, and the central part of each that was used
images-00000.npy    images, uint8 RGB `[n, height, width, 3]`, as `numpy.load` reads them
images-00000.json   the files they come from, with size and time, and the checksum of the array's file
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from satm_tf import storage

Source = tuple[str, int, int]
"""A file below the root, its size in bytes and its modification time in nanoseconds."""

Place = tuple[int, int]
"""The number of a shard, and of an image in it."""

_KIND = "prepared.json"
_LAYOUT = {"shards": "npy"}
# An open map holds a file descriptor, of which a process often may have 1,024.
_OPEN_SHARDS = 128


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Images in a prepared folder, fetched by row from memory-mapped files.

    Args:
        folder: The prepared folder.
        size: Height and width.
        shards: The number of the shard that holds each image, int64 `[n]`.
        places: The place of each image in its shard, int64 `[n]`.
    """

    folder: Path
    size: tuple[int, int]
    shards: NDArray[np.int64]
    places: NDArray[np.int64]

    def __post_init__(self) -> None:
        mapped = lru_cache(_OPEN_SHARDS)(lambda shard: np.load(_shard(self.folder, shard), mmap_mode="r"))
        object.__setattr__(self, "_mapped", mapped)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, height, width, 3)`."""
        return (len(self.shards), *self.size, 3)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images of `rows`, uint8 `[k, height, width, 3]`."""
        images = np.empty((len(rows), *self.size, 3), np.uint8)
        for image, shard, place in zip(images, self.shards[rows], self.places[rows], strict=True):
            image[...] = self._mapped(shard)[place]  # type: ignore[attr-defined]
        return images


def claim(folder: Path, kind: dict[str, Any]) -> None:
    """Marks a folder as prepared images of a kind, and deletes files that a killed process left half written.

    Args:
        folder: Created if it is missing.
        kind: The properties that its images share.

    Raises:
        ValueError: if it holds images of another kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _KIND).is_file():
        storage.write_json(folder / _KIND, kind | _LAYOUT)
    if (held := read_kind(folder)) != kind:
        raise ValueError(
            f"{folder} holds images prepared with other options, {held}; choose another folder. Received: {kind}"
        )
    for left in folder.glob(".images-*"):
        left.unlink()


def read_kind(folder: Path) -> dict[str, Any]:
    """The properties that the images of a prepared folder share.

    Raises:
        FileNotFoundError: if the folder is not a prepared one.
        ValueError: if an earlier version prepared it, in other files.
    """
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


def read_index(folder: Path, *, verify: bool = False) -> tuple[dict[Source, Place | None], set[int]]:
    """The content of the whole shards of a prepared folder.

    Args:
        folder: The prepared folder.
        verify: Whether to compare each shard's checksum, not only its length.

    Returns:
        The position of each file, None for one that does not decode; and the numbers of the whole shards.
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


def write_shard(folder: Path, number: int, sources: list[Source], images: Iterable[NDArray[np.uint8] | None]) -> None:
    """Writes a shard, whole or not at all.

    Args:
        folder: The prepared folder.
        number: The number of the shard, which replaces any existing one.
        sources: The files.
        images: The image of each, uint8 `[height, width, 3]`, or None for one that does not decode.

    Raises:
        OSError: if the data read back from disk differ from those written.
    """
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
