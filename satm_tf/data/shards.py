"""The files of a prepared folder: what is in them, where, and whether they are whole.

prepared.json                    height and width of the images
images-00000.tfrecord            the images, one record each: their uint8 RGB bytes, row by row
images-00000.json                the files they come from, with size and time, and the checksum of the records
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

Source = tuple[str, int, int]
"""A file below the root, its size in bytes and the time it was changed at, in nanoseconds."""

Place = tuple[int, int]
"""The number of a shard, and of a record in it."""

_KIND = "prepared.json"
_BEFORE, _AFTER = 12, 4  # a record's length with its checksum, and the checksum of its bytes


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Images in a prepared folder, fetched by row.

    Args:
        folder: The prepared folder.
        size: Height and width.
        shards: The number of the file that holds each image, int64 `[n]`.
        records: The number of its record in that file, int64 `[n]`.
    """

    folder: Path
    size: tuple[int, int]
    shards: NDArray[np.int64]
    records: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, height, width, 3)`."""
        return (len(self.shards), *self.size, 3)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images of `rows`, uint8 `[k, height, width, 3]`."""
        images = np.empty((len(rows), *self.size, 3), np.uint8)
        record_bytes = _BEFORE + 3 * self.size[0] * self.size[1] + _AFTER
        for image, shard, record in zip(images, self.shards[rows], self.records[rows], strict=True):
            with open(_shard(self.folder, shard), "rb", buffering=0) as file:
                file.seek(record * record_bytes + _BEFORE)
                read = file.readinto(image.data)
            if read != image.nbytes:
                raise OSError(f"The file breaks off: run prepare again. Received: {_shard(self.folder, shard)}")
        return images


def claim(folder: Path, kind: dict[str, Any]) -> None:
    """Makes a folder one of prepared images of a kind.

    Args:
        folder: Made if it is missing.
        kind: What its images have in common.

    Raises:
        ValueError: if it holds images of another kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _KIND).is_file() and (held := read_kind(folder)) != kind:
        raise ValueError(f"{folder} holds images prepared otherwise, {held}: give another folder. Received: {kind}")
    _write_json(folder / _KIND, kind)


def read_kind(folder: Path) -> dict[str, Any]:
    """What the images of a prepared folder have in common.

    Raises:
        FileNotFoundError: if the folder is not a prepared one.
    """
    path = folder / _KIND
    if not path.is_file():
        raise FileNotFoundError(f"No prepared images: python -m satm_tf.prepare makes them. Received: {folder}")
    return json.loads(path.read_text("utf-8"))


def read_index(folder: Path, *, verify: bool = False) -> tuple[dict[Source, Place | None], set[int]]:
    """What the whole shards of a prepared folder hold.

    Args:
        folder: The prepared folder.
        verify: Whether to read each shard and compare its checksum, and not its length alone.

    Returns:
        The place of each file, None for one that does not decode; and the numbers of the whole shards.
    """
    index: dict[Source, Place | None] = {}
    whole = set()
    for entry in tqdm(
        sorted(folder.glob("images-*.json")), "verifying", unit="shard", disable=None if verify else True
    ):
        number = int(entry.stem.removeprefix("images-"))
        held = json.loads(entry.read_text("utf-8"))
        shard = _shard(folder, number)
        if (
            not shard.is_file()
            or shard.stat().st_size != held["bytes"]
            or (verify and _sha256(shard) != held["sha256"])
        ):
            continue
        whole.add(number)
        index |= {(path, size, time): (number, record) for record, (path, size, time) in enumerate(held["files"])}
        index |= dict.fromkeys(map(tuple, held["unreadable"]))
    return index, whole


def write_shard(folder: Path, number: int, sources: list[Source], images: Iterable[NDArray[np.uint8] | None]) -> None:
    """Writes a shard, whole or not at all.

    Args:
        folder: The prepared folder.
        number: Of the shard; one of that number is replaced.
        sources: The files.
        images: The image of each, uint8 `[height, width, 3]`, or None for one that does not decode.

    Raises:
        OSError: if the disk does not give back what was written.
    """
    files: list[Source] = []
    unreadable: list[Source] = []
    shard = _shard(folder, number)
    partial = shard.with_suffix(".partial")
    with tf.io.TFRecordWriter(str(partial)) as writer:
        for source, pixels in zip(sources, images, strict=True):
            if pixels is not None:
                writer.write(pixels.tobytes())
            (unreadable if pixels is None else files).append(source)
    # Reading it back compares the checksum of each record with what was meant to be written.
    written = tf.data.TFRecordDataset(str(partial)).reduce(np.int64(0), lambda n, _: n + 1)
    if written != len(files):
        raise OSError(f"{written} of {len(files)} images arrived on the disk. Received: {partial}")
    entry = {"bytes": partial.stat().st_size, "sha256": _sha256(partial), "files": files, "unreadable": unreadable}
    shard.with_suffix(".json").unlink(missing_ok=True)
    os.replace(partial, shard)
    _write_json(shard.with_suffix(".json"), entry)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"images-{number:05d}.tfrecord"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(content), "utf-8")
    os.replace(partial, path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
