"""From a table that names image files to the rows that can be used, each of the others accounted for."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from satm_tf.data.account import Account
from satm_tf.data.image_headers import UnreadableImageError, read_header

OUTSIDE = "outside the data folder"
OTHER_NAME = "no image by its name"


class _Found(NamedTuple):
    fate: str
    reason: str = ""
    file: str = ""
    orientation: int = 1


def existing_folder(root: str | os.PathLike[str]) -> Path:
    """The folder that a loader is given, with `~` expanded.

    Raises:
        FileNotFoundError: if it does not exist.
        NotADirectoryError: if it is a file.
    """
    path = Path(root).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"The folder of the images does not exist. Received: {root}")
    if not path.is_dir():
        raise NotADirectoryError(f"The images must be in a folder; this is a file. Received: {root}")
    return path


def admit(root: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, Account]:
    """Looks at every file that a table names and keeps the rows whose image can be used.

    Nothing outside `root` is opened, whether the table points there (`../`) or a symbolic link does. An image that is
    named twice on one side is used once. A file that does not end as its format ends is decoded, once, to see whether
    it is whole; nothing else is decoded here.

    Args:
        root: The folder that holds all images.
        table: One row an image: `path` (relative to `root`), `label` (int), `left_out` (a reason, or ""), `raw` and
            `read_as` (the label as written, and the name of the class it was read as), `subject`, `side`.

    Returns:
        The rows to use, with `file` (the real path) and `orientation` added, and the account of all rows.

    Raises:
        ValueError: if no row can be used.
    """
    if table.empty:
        raise ValueError(f"No image under {root} can be used. Received: no file")
    left_out = table["left_out"].mask(
        table["left_out"].eq("") & table.assign(open=table["left_out"].eq("")).duplicated(["path", "side", "open"]),
        "named before",
    )
    wanted = table[left_out.eq("")]
    inside = os.path.join(os.path.realpath(root), "")
    real_folder = lru_cache(maxsize=None)(os.path.realpath)
    looks = [
        _look(inside, real_folder, path) for path in tqdm(wanted["path"], "checking images", disable=None, delay=2)
    ]
    found = pd.DataFrame(looks, wanted.index, _Found._fields)
    outside, missing, unreadable, used = (found["fate"].eq(fate) for fate in (OUTSIDE, "missing", "unreadable", "used"))
    reasons = pd.concat([left_out[left_out.ne("")], found.loc[outside, "fate"]])
    rows = wanted[used].join(found.loc[used, ["file", "orientation"]])
    changed = rows[rows["raw"].ne(rows["read_as"])]
    account = Account(
        rows=len(table),
        used=len(rows),
        mapped=changed.groupby(["raw", "read_as"]).size().to_dict(),
        left_out=reasons.value_counts().to_dict(),
        missing=tuple(wanted.loc[missing, "path"]),
        unreadable=found.loc[unreadable, "reason"].set_axis(wanted.loc[unreadable, "path"]).to_dict(),
    )
    if rows.empty:
        raise ValueError(f"No image under {root} can be used. Received:\n{account}")
    return rows, account


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
        header = read_header(file)
        if not header.whole:
            _decode(file)
    except (FileNotFoundError, NotADirectoryError):
        return _Found("missing")
    except (OSError, ValueError) as error:
        return _Found("unreadable", str(error))
    return _Found("used", file=file, orientation=header.orientation)


def _decode(file: str) -> None:
    try:
        tf.io.decode_image(tf.io.read_file(file), channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError:
        raise UnreadableImageError("truncated") from None
