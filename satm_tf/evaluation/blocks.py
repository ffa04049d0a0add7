"""Finished parts of a measurement on disk."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from satm_tf.attacks import Attack, serialize
from satm_tf.evaluation.predictions import Predictions


class Blocks:
    """The finished parts of a measurement in a folder, each identified by everything it depends on.

    Args:
        folder: The folder; without one, nothing is kept.
        networks: All networks that take part, by name. `prints` has their fingerprints; it is empty without a folder.

    Raises:
        ValueError: As `fingerprint` does.
    """

    def __init__(self, folder: str | Path | None, networks: Mapping[str, Any]):
        self._folder = Path(folder) if folder else None
        self.prints = {name: fingerprint(network) for name, network in networks.items()} if folder else {}

    def get(
        self,
        make: Callable[[], Predictions],
        *,
        label: Sequence[str],
        attack: Attack | None,
        epsilon: float,
        source: Any,
        targets: Sequence[str],
        images: str,
        seed: int,
    ) -> Predictions:
        """Reads a block if it is finished; makes and keeps it otherwise.

        The file name begins with the label; a digest of all that the block depends on follows. `source` and `images`
        are what identifies the network that crafts, and the images and labels in their batches.
        """
        if self._folder is None:
            return make()
        made_of = {
            "label": list(label),
            "attack": None if attack is None else [type(attack).__qualname__, serialize(attack)],
            "epsilon": epsilon,
            "source": source,
            "targets": [[name, self.prints[name]] for name in targets],
            "images": images,
            "seed": seed,
        }
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=repr).encode()).hexdigest()
        readable = "-".join("".join(c if c.isalnum() or c in "+_" else "." for c in part) for part in label if part)
        path = self._folder / f"{readable[:80]}-{digest[:20]}.npz"
        if path.exists():
            return Predictions.load(path)
        block = make()
        block.save(path)
        return block


def fingerprint(network: Any) -> str:
    """A digest that changes when a network's architecture or weights do.

    Args:
        network: A Keras model; an object with an attribute `fingerprint`, which is used as it is; or an object whose
            attributes are of these kinds, or numbers, strings and arrays, such as `attacks.Ensemble`.

    Returns:
        A hexadecimal SHA-256.

    Raises:
        ValueError: If it is of another kind, such as a function.
    """
    digest = hashlib.sha256()
    _feed(digest, network)
    return digest.hexdigest()


def architecture(model: keras.Model) -> str:
    """A Keras model's configuration as JSON, without what the first call, or `compile`, adds to it."""
    return json.dumps(_lasting(keras.saving.serialize_keras_object(model)), sort_keys=True, default=repr)


def _feed(digest: Any, value: Any) -> None:
    if getattr(value, "fingerprint", None):
        digest.update(str(value.fingerprint).encode())
    elif isinstance(value, keras.Model):
        digest.update(architecture(value).encode())
        # Not `variables`: dropout's seeds differ in every process, and no prediction depends on them.
        for weight in value.weights:
            _feed(digest, keras.ops.convert_to_numpy(weight))
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, (str, int, float, bool, type(None))):
        digest.update(repr(value).encode())
    elif isinstance(value, dict):
        _feed(digest, sorted(value.items()))
    elif isinstance(value, (list, tuple)):
        digest.update(str(len(value)).encode())
        for item in value:
            _feed(digest, item)
    elif callable(value) and not isinstance(value, (types.FunctionType, type)) and hasattr(value, "__dict__"):
        digest.update(type(value).__qualname__.encode())
        for name, part in sorted(vars(value).items()):
            digest.update(name.encode())
            _feed(digest, part)
    else:
        raise ValueError(
            "Finished parts are kept only for networks that can be identified: Keras models, files, or objects with an "
            f"attribute `fingerprint`. Received: {value!r}"
        )


def _lasting(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _lasting(value) for key, value in config.items() if key not in ("build_config", "compile_config")}
    return [_lasting(value) for value in config] if isinstance(config, (list, tuple)) else config
