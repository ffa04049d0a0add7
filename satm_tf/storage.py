"""Atomic files and folders, digests, locks, and the record of how a folder was made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import tensorflow as tf
import yaml

try:
    import fcntl
except ImportError:  # Only POSIX systems have it; others do not lock.
    fcntl = None  # type: ignore[assignment]

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
LAYOUT = 2
"""The version of the files, columns and names in claimed folders; version 1, of the first release, cannot be read."""
_PARTIAL = ".partial"
_PACKAGES = ("satm_tf", "tensorflow", "tensorflow-cpu", "keras", "numpy", "pandas")


@contextlib.contextmanager
def atomic_file(path: str | Path, *, mode: int = 0o666) -> Iterator[Path]:
    """A path to write to, which replaces the file when the block ends without an error.

    The content is synced to disk before the name changes, so that a power cut leaves either the old or the new file.

    Args:
        path: The file, which is overwritten. Its folder is created.
        mode: Its permissions, before the umask.

    Example:
        >>> with atomic_file("table.csv") as temporary:
        ...     frame.to_csv(temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """A folder to fill, which appears under its name when the block ends without an error.

    Temporary folders that killed processes left next to it are removed.

    Args:
        path: The folder, which must not exist, or be empty, when the block ends.
        durable: Whether to wait until every file is synced to disk. For thousands of files that can be created again
            from a seed, the wait would be longer than the work.

    Raises:
        FileExistsError: If it exists when the block ends.

    Example:
        >>> with atomic_folder("results") as temporary:
        ...     (temporary / "a.txt").write_text("a")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    temporary, hold = _partial_folder(path)
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.rglob("*") if durable else ():
            _sync(file)
        try:
            temporary.rename(path)
        except OSError as error:
            if path.exists():
                raise FileExistsError(f"{path} exists; choose another folder. Received: {path}") from error
            raise
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if hold is not None:
            os.close(hold)


def _partial_folder(path: Path) -> tuple[Path, int | None]:
    """A temporary folder next to a path, and the descriptor with which this process holds it."""
    while True:
        # A sibling is on the same disk, and its leading dot hides it from processes that poll the parent.
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=_PARTIAL, dir=path.parent))
        hold = _hold(temporary, wait=True)
        # Before it was held, another process may have removed it as a leftover.
        if temporary.exists():
            return temporary, hold


def _remove_leftovers(parent: Path) -> None:
    """Removes the temporary folders of killed processes, whose locks the system has released."""
    for folder in parent.glob(f".*{_PARTIAL}"):
        hold = _hold(folder, wait=False)
        if hold is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(hold)


def _hold(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that locks a folder while it is open; None if another process holds it or locking is unsupported."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2))


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: If it is damaged; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"This file is damaged; delete it. Received: {path} ({error})") from error


def read_csv(path: str | Path, **options: Any) -> pd.DataFrame:
    """The content of one of the package's tables.

    Args:
        path: The CSV file.
        **options: As `pandas.read_csv` takes them.

    Raises:
        ValueError: If it is damaged; the message names it.
    """
    try:
        return pd.read_csv(path, **options)
    except ValueError as error:
        raise ValueError(f"This table is damaged; delete it and create it again. Received: {path} ({error})") from error


def _sync(path: Path) -> None:
    """Syncs a file or folder to disk, if the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, or of a folder's files and their names, in hexadecimal digits.

    Raises:
        FileNotFoundError: If it does not exist.
    """
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(each for each in path.rglob("*") if each.is_file()):
            digest.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """The versions and the machine, as in `environment.json`."""
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # TensorFlow has one of two names; this package may run from its sources.
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "layout": LAYOUT,
        "processors": os.cpu_count(),
        "devices": [f"{device.device_type} {device.name}" for device in tf.config.list_physical_devices()],
        **installed,
    }


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Locks the folder against other processes on this machine; the system releases the lock if this one dies.

    Args:
        folder: The folder; it need not exist. Systems without `fcntl` do not lock.

    Raises:
        ValueError: If another process holds it.
    """
    if fcntl is None:
        yield
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Another process is working in {folder}; wait for it, or choose another folder. Received: {folder}"
            ) from None
        yield


def claim(folder: str | Path, described: Mapping[str, Any]) -> None:
    """Claims a folder for this configuration, or confirms the claim; writes `config.yaml` and `environment.json`.

    Args:
        folder: The folder; it need not exist.
        described: The configuration, in JSON types.

    Raises:
        ValueError: If the folder holds results of another configuration or layout.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        write_json(folder / ENVIRONMENT, environment())
        write_text(folder / CONFIG, yaml.safe_dump(json.loads(json.dumps(described)), sort_keys=False))
    check_claim(folder, described)


def check_claim(folder: str | Path, described: Mapping[str, Any]) -> None:
    """Raises as `claim` does if the folder holds results of another configuration or layout, without writing."""
    path = Path(folder) / CONFIG
    if not path.exists():
        return
    check_layout(folder)
    # Without nulls, so that a later release can add a field whose default is null.
    described, found = _without_nulls(json.loads(json.dumps(described))), _without_nulls(read_config(folder))
    differing = [key for key in {**described, **found} if described.get(key) != found.get(key)]
    if differing:
        raise ValueError(
            f"{folder} holds results of another configuration; choose another folder, or delete it. "
            f"Received: other values of {', '.join(differing)}"
        )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def check_layout(folder: str | Path) -> None:
    """Checks that a folder's files have the current layout.

    Raises:
        ValueError: If an earlier release wrote it.
    """
    path = Path(folder) / ENVIRONMENT
    layout = read_json(path).get("layout", 1) if path.exists() else LAYOUT
    if layout != LAYOUT:
        raise ValueError(
            f"{folder} was written by another release of satm_tf, whose files have different names and columns; "
            f"choose another folder, or use that release to read it. Received: layout {layout}, not {LAYOUT}"
        )


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration for which a folder is claimed.

    Raises:
        FileNotFoundError: If it is not claimed.
        ValueError: If its `config.yaml` is damaged, or another release wrote it.
    """
    path = Path(folder) / CONFIG
    check_layout(folder)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"This file is damaged; delete its folder. Received: {path} ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"This file does not hold a configuration; delete its folder. Received: {path}")
    return found
