"""What a folder of results says of where it came from, and how its files are written."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf
import yaml

_PACKAGES = ("satm_tf", "tensorflow", "tensorflow-cpu", "keras", "numpy", "pandas")


def environment() -> dict[str, Any]:
    """The versions and the machine, as `environment.json` holds them."""
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # TensorFlow goes by one of two names; ours may run from its sources.
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "devices": [f"{device.device_type} {device.name}" for device in tf.config.list_physical_devices()],
        **installed,
    }


def write_text(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other processes of this machine from the folder meanwhile; the system lets go of it if this one dies.

    Args:
        folder: The folder; it need not exist. On systems without `fcntl` nothing is kept.

    Raises:
        ValueError: If another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Another process is at work in {folder}; wait for it, or choose another folder. Received: {folder}"
            ) from None
        yield


def claim(folder: Path, described: Mapping[str, Any]) -> None:
    """Makes a folder the one of this configuration, or finds that it is; writes `config.yaml` and `environment.json`.

    Args:
        folder: The folder; it need not exist.
        described: The configuration, of what JSON can hold.

    Raises:
        ValueError: If the folder holds results of another configuration.
    """
    path = folder / "config.yaml"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "environment.json", json.dumps(environment(), indent=2))
        write_text(path, yaml.safe_dump(json.loads(json.dumps(described)), sort_keys=False))
    check_claim(folder, described)


def check_claim(folder: Path, described: Mapping[str, Any]) -> None:
    """Raises what `claim` would, if the folder holds results of another configuration; writes nothing."""
    path = folder / "config.yaml"
    if not path.exists():
        return
    described = json.loads(json.dumps(described))
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    differing = [key for key in {**described, **found} if described.get(key) != found.get(key)]
    if differing:
        raise ValueError(
            f"{folder} holds results of another configuration; choose another folder, or delete it. "
            f"Received: other values of {', '.join(differing)}"
        )
