"""Arrays and facts in one file, in which any damage is detected."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from satm_tf.storage import atomic_file

_DIGEST_LENGTH = len(hashlib.sha256().hexdigest())


class Snapshot(NamedTuple):
    """The content of a file: arrays in a fixed order, and facts as JSON."""

    arrays: list[np.ndarray]
    facts: dict[str, Any]


def write(path: Path, snapshot: Snapshot, previous: Path | None = None) -> None:
    """Writes a file atomically: SHA-256 of the rest, a line break, a NumPy archive.

    An earlier file is moved to `previous`, or else overwritten.
    """
    archive = io.BytesIO()
    facts = np.frombuffer(json.dumps(snapshot.facts).encode(), np.uint8)
    np.savez(archive, facts=facts, **{str(index): array for index, array in enumerate(snapshot.arrays)})  # type: ignore[arg-type]
    content = archive.getbuffer()
    with atomic_file(path) as temporary:
        with temporary.open("wb") as file:
            file.write(hashlib.sha256(content).hexdigest().encode() + b"\n")
            file.write(content)
        if previous is not None and path.exists():
            path.replace(previous)


def read(path: Path) -> Snapshot:
    """Reads a file that `write` wrote.

    Raises:
        ValueError: If the file was changed after it was written.
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
