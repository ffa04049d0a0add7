"""From the names of image files to the usable rows and an account of the others."""

from __future__ import annotations

import csv
import io
import os
import stat
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from satm_tf import storage
from satm_tf.data.account import Account
from satm_tf.data.image_headers import UnreadableImageError, read_header

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")
"""The suffixes of image files, in upper or lower case."""

OUTSIDE = "outside the data folder"
OTHER_NAME = "not an image by its name"
NAMED_BEFORE = "named before"
OTHER_LABEL = "the same image has another label too"
OTHER_SIDE = "the same image is in another split or fold"
NOT_UTF8 = "its name is not UTF-8; rename it"


class _Found(NamedTuple):
    fate: str
    reason: str = ""
    file: str = ""
    orientation: int = 1
    size: int = 0


def existing_folder(root: str | os.PathLike[str]) -> Path:
    """The folder that a loader is given, with `~` expanded; an error if it does not exist or is a file."""
    path = Path(root).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"The folder of the images does not exist. Received: {root}")
    if not path.is_dir():
        raise NotADirectoryError(f"The images must be in a folder; this is a file. Received: {root}")
    return path


def files_below(root: Path, folder: str = "") -> Iterator[str]:
    """The paths, relative to `root`, of all files in a folder of it and in the folders below that, sorted."""
    for place, folders, files in os.walk(root / folder):
        folders.sort()
        yield from (os.path.relpath(os.path.join(place, name), root) for name in sorted(files))


def fate_by_name(path: str) -> str:
    """Why a file is left out because of its suffix; "" if it is not."""
    return "" if path.lower().endswith(SUFFIXES) else OTHER_NAME


def read_text(path: Path) -> str:
    """The text of a file, which must be UTF-8, without a byte order mark."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text; save it as UTF-8. Received: {error}") from None
    if "\0" in text:
        raise ValueError(f"{path} must be UTF-8 text; save it as UTF-8. Received: zero bytes, as UTF-16 has")
    return text


def read_table(path: Path, **dialect: Any) -> pd.DataFrame:
    """Reads a text file with one row per line, all str; the first line names the columns.

    Accepts the line ends of any system, a missing last one, empty lines and a byte order mark. A line without one field
    for each column is an error, which pandas's reader would fill or shift. `dialect` is as `csv.reader` takes it.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True, **dialect)
    rows: list[list[str]] = []
    try:
        for row in filter(None, reader):
            rows.append(row)
            if len(row) != len(rows[0]):
                raise csv.Error(f"{len(row)} fields")
    except csv.Error as error:
        raise ValueError(
            f"{path} must have {len(rows[0]) if rows else 'its'} fields on each line; it may be cut off, so compare it "
            f"with its source. Received: {error} on line {reader.line_num}"
        ) from None
    if not rows or len(set(rows[0])) < len(rows[0]):
        received = rows[0] if rows else "an empty file"
        raise ValueError(f"The first line of {path} must name each column once. Received: {received}")
    return pd.DataFrame(rows[1:], columns=rows[0], dtype=str)


def admit(root: Path, table: pd.DataFrame, *, keep_repeats: bool = False) -> tuple[pd.DataFrame, Account]:
    """Checks every file that a table names and keeps the rows whose image is usable.

    Nothing outside `root` is opened, whether the table points there (`../`) or a symbolic link does. A path that is
    named twice with the same label and side is used once. A file that does not end as its format requires is decoded
    once, to see whether it is whole; nothing else is decoded here.

    Two names may refer to one image: links, `a/../a/0.png`, or files of equal bytes, which are found by their size and
    then by their SHA-256. Such an image is left out if its labels differ. If it is on several sides, it stays on the
    one whose name sorts first: "test" rather than "train", or the first of several folds.

    Args:
        root: The folder of all images.
        table: One row per image: `path` (relative to `root`), `label` (int), `left_out` (a reason, or "") and `side`.
            Other columns are kept.
        keep_repeats: Whether a path that is named several times is used each time.

    Returns:
        The rows to use, with `file` (the real path), `orientation` and `image` (equal for all names of one image)
        added, and the account of all rows. That no row can be used is an error.
    """
    if table.empty:
        raise ValueError(f"No image under {root} is usable. Received: no file")
    left_out = table["left_out"]
    if not keep_repeats:
        named = table.assign(open=left_out.eq("")).duplicated(["path", "label", "side", "open"])
        left_out = left_out.mask(left_out.eq("") & named, NAMED_BEFORE)
    wanted = table[left_out.eq("")]
    inside = os.path.join(os.path.realpath(root), "")
    real_folder = lru_cache(maxsize=None)(os.path.realpath)
    looks = [
        _look(inside, real_folder, path) for path in tqdm(wanted["path"], "checking images", disable=None, delay=2)
    ]
    found = pd.DataFrame(looks, wanted.index, _Found._fields)
    fate = found["fate"].mask(found["fate"].eq("unreadable") & wanted["path"].duplicated(), NAMED_BEFORE)
    rows = wanted.assign(path=wanted["path"].map(printable)).join(found[["file", "orientation"]])
    rows["image"] = _same(found["file"], found["size"])
    used = rows[fate.eq("used")]
    fate[used.index[used.groupby("image")["label"].transform("nunique").gt(1)]] = OTHER_LABEL
    sides = rows[fate.eq("used")].groupby("image")["side"]
    fate[fate.eq("used") & rows["side"].ne(sides.transform("min").reindex(rows.index))] = OTHER_SIDE
    reasons = pd.concat([left_out[left_out.ne("")], fate[~fate.isin(("used", "missing", "unreadable"))]])
    named = used.drop_duplicates(["image", "path"])
    named = named[named["image"].duplicated(keep=False)]
    rows, missing, unreadable = (rows[fate.eq(kind)] for kind in ("used", "missing", "unreadable"))
    account = Account(
        rows=len(table),
        used=len(rows),
        left_out=reasons.value_counts().to_dict(),
        missing=tuple(missing["path"]),
        unreadable=dict(zip(unreadable["path"], found.loc[unreadable.index, "reason"], strict=True)),
        duplicates=tuple(tuple(names) for _, names in named.groupby("image", sort=False)["path"]),
    )
    if rows.empty:
        raise ValueError(f"No image under {root} is usable. Received:\n{account}")
    return rows, account


def _same(files: pd.Series, sizes: pd.Series) -> pd.Series:
    """One string for all files of the same bytes: the path if no other file has its size, or else the digest."""
    shared = files[sizes.duplicated(keep=False) & files.ne("")]
    digests = {file: storage.sha256(file) for file in tqdm(shared.unique(), "comparing images", disable=None, delay=2)}
    return files.map(lambda file: digests.get(file, file))


def printable(path: str) -> str:
    """The path with bytes that are not UTF-8 escaped, so that it can be printed and stored."""
    return path.encode("utf-8", "backslashreplace").decode()


def _look(inside: str, real_folder: Callable[[str], str], path: str) -> _Found:
    try:
        folder, name = os.path.split(os.path.join(inside, path))
        file = os.path.join(real_folder(folder), name)
        status = os.lstat(file) if file.startswith(inside) else None
        if status is not None and stat.S_ISLNK(status.st_mode):
            file = os.path.realpath(file)
            status = os.stat(file) if file.startswith(inside) else None
        if status is None:
            return _Found(OUTSIDE)
        if not stat.S_ISREG(status.st_mode):
            return _Found("unreadable", "not a file")
        if printable(file) != file:
            return _Found("unreadable", NOT_UTF8)
        header = read_header(file)
        if not header.whole:
            _decode(file)
    except (FileNotFoundError, NotADirectoryError):
        return _Found("missing")
    except (OSError, ValueError) as error:
        return _Found("unreadable", str(error))
    return _Found("used", file=file, orientation=header.orientation, size=status.st_size)


def _decode(file: str) -> None:
    try:
        tf.io.decode_image(tf.io.read_file(file), channels=3, expand_animations=False)
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):  # TensorFlow's message may quote the file's bytes
        raise UnreadableImageError("truncated") from None
