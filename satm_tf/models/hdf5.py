"""Safe opening of HDF5 files: content that would hang the library, fill the memory or link elsewhere is refused."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

# What h5py raises for damaged files: a SystemError if a visit fails inside.
_BROKEN = (OSError, LookupError, RuntimeError, SystemError, TypeError, AttributeError, UnicodeError, struct.error)
# The most bytes of arrays per byte of the file: weights hardly compress.
_EXPANSION = 16
_SIZES = 16  # bytes at the start that hold the signature and the sizes of numbers
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# A collection of the global heap: its signature in version 1; its header, which ends in its size; each object's.
_HEAP = b"GCOL\x01"
# From the start of an attribute to its name, by version; and the class of a type of variable length.
_ATTRIBUTE, _VARIABLE = {1: 8, 2: 8, 3: 9}, 9
_HEAP_HEADER, _OBJECT_HEADER = struct.Struct("<8xQ"), struct.Struct("<H6xQ")


@contextmanager
def open_weights(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading if it is safe to; an error inside the block reports that the file is damaged.

    Raises:
        ValueError: If it is not an HDF5 file, is damaged, has parts in other files, or claims far more memory than it
            has bytes.

    Example:
        >>> with open_weights(Path("vgg.weights.h5")) as file:
        ...     print(list(file))
    """
    if path.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"Weights must be in an HDF5 file (.h5, .hdf5, .weights.h5). Received: {path}")
    try:
        _check_heaps(path)
        with h5py.File(path, "r") as file:
            _check_sizes(file, path)
            _check_texts(file, path)
            yield file
    except _BROKEN as error:
        raise ValueError(
            f"{path} cannot be read: it is damaged, or its download is incomplete. Download it again. ({error})"
        ) from error


def _check_sizes(file: h5py.File, path: Path) -> None:
    """Refuses links to other places, and arrays that claim far more memory than the file has bytes."""
    claimed = 0

    # A visit ends at the first returned string; h5py cannot handle an exception raised here.
    def count(name: str, item: h5py.Group | h5py.Dataset) -> str | None:
        nonlocal claimed
        if not isinstance(item, h5py.Dataset):
            return None
        claimed += int(item.size or 0) * item.dtype.itemsize
        if item.dtype.hasobject:
            return f"{name!r} does not hold numbers"
        return f"{name!r} is in another file" if item.external or item.is_virtual else None

    def follow(name: str, link: object) -> str | None:
        return None if isinstance(link, h5py.HardLink) else f"{name!r} is a link to somewhere else"

    reason = file.visititems_links(follow) or file.visititems(count)
    if reason is None and claimed > _EXPANSION * path.stat().st_size:
        reason = f"its arrays claim {claimed:,} bytes, of a file of {path.stat().st_size:,}"
    if reason is not None:
        raise OSError(reason)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
        yield contents


def _check_texts(file: h5py.File, path: Path) -> None:
    """Refuses attributes with texts longer than the file: libhdf5 allocates a text's memory before it looks for it.

    Source:
        https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, IV.A.2.m "The Attribute Message"
    """
    places: list[h5py.Group | h5py.Dataset] = [file]
    file.visititems(lambda _, item: places.append(item))
    with _mapped(path) as contents:
        for attribute in {name for place in places for name in place.attrs}:
            name = attribute.encode() + b"\0"
            at = contents.find(name)
            while at >= 0:
                _check_lengths(contents, at, len(name))
                at = contents.find(name, at + 1)


def _check_lengths(contents: mmap.mmap, at: int, length: int) -> None:
    """Checks the lengths of an attribute's texts, if the bytes around its name say that it has any."""
    version = next((known for known, size in _ATTRIBUTE.items() if at >= size and contents[at - size] == known), 0)
    if not version or struct.unpack_from("<H", contents, at - _ATTRIBUTE[version] + 2)[0] != length:
        return
    _, of_kind, of_space = struct.unpack_from("<3H", contents, at - _ATTRIBUTE[version] + 2)
    multiple = 8 if version == 1 else 1
    kind = at + length + -length % multiple
    space = kind + of_kind + -of_kind % multiple
    values = space + of_space + -of_space % multiple
    if values >= len(contents) or contents[kind] & 0x0F != _VARIABLE:
        return
    sizes = [space + (8 if contents[space] == 1 else 4) + 8 * axis for axis in range(contents[space + 1])]
    if max(sizes, default=0) > len(contents) - 8:
        return
    texts = math.prod(struct.unpack_from("<Q", contents, size)[0] for size in sizes)
    for text in range(values, min(values + texts * 16, len(contents) - 15), 16):
        (claimed,) = struct.unpack_from("<I", contents, text)
        if claimed > len(contents):
            raise OSError(f"a text claims {claimed:,} bytes, of a file of {len(contents):,}")


def _check_heaps(path: Path) -> None:
    """Refuses a heap of texts whose objects do not follow each other to its end: libhdf5 could loop in it forever.

    Source:
        https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, III.E "Disk Format: Level 1E - Global Heap"
    """
    if path.stat().st_size < _SIZES:
        raise OSError("it is too short for HDF5")
    with _mapped(path) as contents:
        # The size of lengths, whose position differs between versions 0 and 1 of the superblock and versions 2 and 3.
        if contents[:8] != _SIGNATURE or contents[14 if contents[8] < 2 else 10] != 8:
            raise OSError("it does not start like an HDF5 file of weights")
        start = contents.find(_HEAP)
        while 0 <= start <= len(contents) - _HEAP_HEADER.size:
            (size,) = _HEAP_HEADER.unpack_from(contents, start)
            at, end = start + _HEAP_HEADER.size, min(start + size, len(contents))
            while at + _OBJECT_HEADER.size <= end:
                index, size = _OBJECT_HEADER.unpack_from(contents, at)
                # Object 0 is the free space, including its own header.
                taken = _OBJECT_HEADER.size + size + -size % 8 if index else size
                if not _OBJECT_HEADER.size <= taken <= end - at:
                    raise OSError(f"the heap of its texts is damaged at byte {at}")
                at += taken
            start = contents.find(_HEAP, start + 1)
