"""Damaged weights files, and what must be true of a network that was asked to load one."""

from __future__ import annotations

from pathlib import Path

import h5py
import keras
import numpy as np

from satm_tf.models.weights import load_weights_by_name
from tests.fuzzing import Outcomes

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


def small_model(folder: Path) -> tuple[keras.Model, list[Path], list[np.ndarray]]:
    """A model of two layers, its file as Keras 3 writes it and as Keras 2 did, and the values in both."""
    images = keras.Input((4, 4, 3))
    outputs = keras.layers.Dense(2, name="b")(keras.layers.Conv2D(2, 3, name="a")(images))
    model = keras.Model(images, outputs, name="small")
    files, rng = [folder / "new.weights.h5", folder / "old.h5"], np.random.default_rng(0)
    values = [rng.standard_normal(weight.shape, dtype="float32") for weight in model.weights]
    model.set_weights(values)
    model.save_weights(files[0])
    with h5py.File(files[1], "w") as file:
        file.attrs["layer_names"] = [b"a", b"b"]
        for layer in model.layers[1:]:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                group[name] = np.asarray(weight)
    model.set_weights([np.full_like(value, 7) for value in values])
    return model, files, values


def fuzz_weights(seed: int, count: int, folder: Path) -> Outcomes:
    """Loads `count` changed files of each layout: a network keeps what it has, or gets finite numbers."""
    model, files, whole = small_model(folder)
    rng, outcomes = np.random.default_rng(seed), Outcomes()
    kept = [np.array(weight) for weight in model.weights]
    for file in files:
        contents = file.read_bytes()
        damaged = file.with_name(f"damaged-{file.name}")
        for _ in range(count):
            damaged.write_bytes(mutate(rng, contents))
            message = None
            with outcomes.timed(LIMIT, damaged.read_bytes()):
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
    return outcomes
