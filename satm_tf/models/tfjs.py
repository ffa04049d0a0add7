"""The weights of a TensorFlow.js graph model: a `.json` with the graph and a manifest, and binary files next to it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from satm_tf.storage import sha256

_DTYPES = {"float32": "<f4", "int32": "<i4", "uint8": "u1", "bool": "?"}


def read_graph_model(path: Path, checksums: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """Reads every weight of a TensorFlow.js graph model, in the order of its manifest.

    The binary files hold the weights one after the other, little-endian and without separators, so the manifest is
    checked against the graph's constants and the files' sizes before any weight is read.

    Args:
        path: The `.json` file. The binary files that its manifest names must be in the same folder.
        checksums: SHA-256 of the `.json` file and of every binary file, by file name; nothing is parsed before all of
            them match. None skips the check.

    Raises:
        ValueError: If a file is missing, damaged, of another size or checksum than it should be, if the manifest and
            the graph name other weights, or if the weights are quantised.

    Example:
        >>> read_graph_model(Path("faceres-deep.json"))["conv1/convolution/merged_input"].shape
        (3, 3, 3, 32)

    Source:
        The layout is that of tensorflowjs_converter: https://www.tensorflow.org/js/guide/conversion.
    """
    for name, expected in (checksums or {}).items():
        received = sha256(_beside(path, name))
        if received != expected:
            raise ValueError(
                f"{path.parent / name} is not the published file: it is damaged, or another version. Download it "
                f"again. Expected SHA-256: {expected}. Received: {received}"
            )
    try:
        model = json.loads(_beside(path, path.name).read_text("utf-8"))
        constants = [node["name"] for node in model["modelTopology"]["node"] if node["op"] == "Const"]
        files = [str(name) for group in model["weightsManifest"] for name in group["paths"]]
        entries = [_Entry(each) for group in model["weightsManifest"] for each in group["weights"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a TensorFlow.js graph model, or is damaged. ({error!r})") from error
    names = [entry.name for entry in entries]
    if Counter(names) != Counter(set(constants)):
        different = sorted(set(names) ^ set(constants)) or [name for name, n in Counter(names).items() if n > 1]
        raise ValueError(
            f"The manifest of {path} and its graph must name the same weights, each once: {len(names)} there, "
            f"{len(constants)} here. Received: {different[0]!r} in one of them"
        )
    if checksums is not None and (unknown := set(files) - set(checksums)):
        raise ValueError(f"{path} refers to a file whose checksum is not known. Received: {min(unknown)!r}")
    content = b"".join(_beside(path, name).read_bytes() for name in files)
    needed = sum(entry.bytes for entry in entries)
    if len(content) != needed:
        raise ValueError(
            f"The manifest of {path} describes {needed} bytes of weights in {', '.join(files)}; a download may have "
            f"been cut short. Received: {len(content)} bytes"
        )
    weights, start = {}, 0
    for entry in entries:
        weights[entry.name] = np.frombuffer(content, entry.dtype, math.prod(entry.shape), start).reshape(entry.shape)
        start += entry.bytes
    return weights


class _Entry:
    """One weight of the manifest."""

    def __init__(self, described: Mapping[str, Any]):
        self.name, self.shape = str(described["name"]), tuple(described["shape"])
        if "quantization" in described or described["dtype"] not in _DTYPES:
            raise ValueError(
                f"Weights must be {', '.join(_DTYPES)}, not quantised. Received: {described['dtype']} for {self.name!r}"
            )
        if not all(type(side) is int and side >= 0 for side in self.shape):
            raise ValueError(f"A shape must consist of whole numbers. Received: {list(self.shape)} for {self.name!r}")
        self.dtype = np.dtype(_DTYPES[described["dtype"]])
        self.bytes = math.prod(self.shape) * self.dtype.itemsize


def _beside(path: Path, name: str) -> Path:
    """A file of the model, which must be inside the folder."""
    file = path.parent / name
    if Path(name).name != name or not file.is_file():
        raise ValueError(
            f"A TensorFlow.js graph model is a .json file and the binary files that it names, in one folder. "
            f"Missing: {name!r} in {path.parent}"
        )
    return file
