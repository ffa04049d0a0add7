"""Damaged weights files, and what must be true of a network that was asked to load one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from satm_tf.models.weights import load_weights_by_name

LIMIT = 2.0
"""Seconds that one file may take."""


def mutate(rng: np.random.Generator, contents: bytes) -> bytes:
    """One to three changes: a bit, some bytes, a part cut out, the end cut off."""
    for _ in range(rng.integers(1, 4)):
        at, length, kind = int(rng.integers(len(contents))), int(rng.integers(1, 65)), rng.integers(4)
        if kind == 0:
            contents = contents[:at] + bytes([contents[at] ^ 1 << rng.integers(8)]) + contents[at + 1 :]
        elif kind == 1:
            contents = contents[:at] + rng.bytes(length) + contents[at + length :]
        elif kind == 2:
            contents = contents[:at] + contents[at + length :]
        else:
            contents = contents[: max(1, at)]
    return contents


def fuzz_weights(
    model: keras.Model, files: Sequence[Path], values: Mapping[str, Mapping[str, np.ndarray]], *, seed: int, count: int
) -> Counter[str]:
    """Loads `count` mutations of each file; a network keeps what it has, or gets finite numbers, in every case."""
    rng, outcomes = np.random.default_rng(seed), Counter[str]()
    kept = [np.array(weight) for weight in model.weights]
    whole = [array for layer in model.layers for array in values[layer.name].values()]
    for file in files:
        contents = file.read_bytes()
        damaged = file.with_name(f"damaged-{file.name}")
        for _ in range(count):
            damaged.write_bytes(mutate(rng, contents))
            began, message = time.perf_counter(), None
            try:
                load_weights_by_name(model, damaged)
            except ValueError as error:
                message = str(error)
            if message is not None:
                assert damaged.name in message, message
                assert all(np.array_equal(*pair) for pair in zip(model.weights, kept, strict=True)), "nothing is set"
                outcomes["refused"] += 1
            else:
                loaded = [np.array(weight) for weight in model.weights]
                assert all(np.isfinite(array).all() for array in loaded)
                same = all(np.array_equal(*pair) for pair in zip(loaded, whole, strict=True))
                outcomes["loaded, the same" if same else "loaded, other numbers: HDF5 has no checksum"] += 1
                for weight, array in zip(model.weights, kept, strict=True):
                    weight.assign(array)
            assert time.perf_counter() - began < LIMIT
    return outcomes
