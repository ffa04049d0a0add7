"""Arrays and facts in one file that is either whole or recognised as broken."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_DIGEST_LENGTH = len(hashlib.sha256().hexdigest())


class Snapshot(NamedTuple):
    """What a file holds: arrays in a fixed order, and facts as JSON has them."""

    arrays: list[np.ndarray]
    facts: dict[str, Any]


def write(path: Path, snapshot: Snapshot, previous: Path | None = None) -> None:
    """Writes a file as a whole or not at all: SHA-256 of the rest, a line break, a NumPy archive.

    Args:
        path: The file; what it held is replaced.
        snapshot: What to write.
        previous: Where to keep what the file held.
    """
    archive = io.BytesIO()
    facts = np.frombuffer(json.dumps(snapshot.facts).encode(), np.uint8)
    np.savez(archive, facts=facts, **{str(index): array for index, array in enumerate(snapshot.arrays)})  # type: ignore[arg-type]
    content = archive.getbuffer()
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        file.write(hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if previous is not None and path.exists():
        path.replace(previous)
    temporary.replace(path)


def copy(path: Path, target: Path) -> None:
    """Gives another file the content of one, as a whole or not at all."""
    temporary = target.with_name(f".{target.name}")
    shutil.copyfile(path, temporary)
    temporary.replace(target)


def read(path: Path) -> Snapshot:
    """Reads what `write` wrote.

    Raises:
        ValueError: If the file is not what was written.
    """
    content = path.read_bytes()
    digest, rest = content[:_DIGEST_LENGTH], memoryview(content)[_DIGEST_LENGTH + 1 :]
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise ValueError(
            f"{path} is damaged or incomplete: its checksum does not match. Received: {len(content)} bytes"
        )
    with np.load(io.BytesIO(rest)) as archive:
        facts = json.loads(archive["facts"].tobytes())
        return Snapshot([archive[str(index)] for index in range(len(archive.files) - 1)], facts)


def read_first_whole(paths: Sequence[Path]) -> tuple[Snapshot | None, list[str]]:
    """The first of these files that is there and whole, or None; and what is wrong with those before it."""
    broken: list[str] = []
    for path in paths:
        try:
            return read(path), broken
        except FileNotFoundError:
            continue
        except ValueError as error:
            broken.append(str(error))
    return None, broken
