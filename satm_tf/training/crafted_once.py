"""Adversarial examples of sources that never change, crafted before training and kept next to the data."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from satm_tf.attacks import Attack, serialize
from satm_tf.storage import atomic_file, lock, sha256, write_text
from satm_tf.training.private_keras import all_layers
from satm_tf.training.recall import Recalled

# Differences are multiples of epsilon / 127, so that the ball's edge is exact.
_LEVELS = 127
_fold_in = tf.random.experimental.stateless_fold_in


class Crafter(NamedTuple):
    """A source with an attack.

    Attributes:
        source: Name of the source.
        attack: What it crafts with.
    """

    source: str
    attack: Attack


class CraftedOnce:
    """Crafts the examples of each source, attack and copy once, into a file, and returns those of any images.

    A file holds int8 `[images, height, width, 3]`, the differences from the images in steps of `epsilon / 127`: an
    example is inside its ball, and differs from the attack's result by at most `epsilon / 254`. Its name is a digest of
    all that its content depends on: the source's layers and weights, the attack, images and labels in their batches,
    the seed and the copy. An existing file, from a killed run or another scheme, is reused. Next to it is its SHA-256;
    a file that does not match is crafted again.

    It takes `3 * height * width * images * copies` bytes on disk for each source and attack.

    Args:
        folder: The folder of the files; None takes a temporary folder, which is deleted with this object.
        seed: Seed of the attacks. Copy k has the seed `fold_in([seed, k], batch)` in each batch of images.
    """

    def __init__(self, folder: str | Path | None, seed: int):
        self._temporary = None if folder is not None else tempfile.TemporaryDirectory(prefix="satm_tf-crafted-")
        self.folder = Path(folder if folder is not None else self._temporary.name)  # type: ignore[union-attr]
        self.seed = seed
        self._files: dict[tuple[str, Crafter], list[np.ndarray]] = {}

    def prepare(
        self,
        split: str,
        batches: tf.data.Dataset,
        crafters: Mapping[Crafter, Callable[..., tf.Tensor] | Recalled],
        copies: int,
        *,
        quiet: bool = True,
    ) -> None:
        """Crafts the missing files.

        Args:
            split: The name of these images for `read`.
            batches: `((images, rows), labels)`, every image once and in the order of `rows`.
            crafters: The network of each source and attack.
            copies: How many copies of each image.
            quiet: Whether to hide the progress bar, which is shown on a terminal.

        Raises:
            ValueError: If the disk has too little space; if another process uses the folder; or if a source is neither
                a Keras model nor loaded from a file, so that changes could not be detected.

        Warns:
            UserWarning: If a file is damaged.
        """
        described = {crafter: fingerprint(network, crafter.source) for crafter, network in crafters.items()}
        shape, digest = _look_at(batches)
        paths = {
            (crafter, copy): self.folder / f"{_name(described[crafter], crafter.attack, digest, self.seed, copy)}.npy"
            for crafter in crafters
            for copy in range(copies)
        }
        with lock(self.folder):
            for unfinished in self.folder.glob(".*-*"):
                unfinished.unlink()
            missing = {each: path for each, path in paths.items() if not _is_whole(path)}
            _check_room(self.folder, len(set(missing.values())) * int(np.prod(shape)))
            steps = len(missing) * len(batches)
            with tqdm(total=steps, desc=f"crafting {split} images", unit="step", disable=quiet or None) as bar:
                for crafter, network in crafters.items():
                    craft = _compiled(crafter.attack, network, shape[1:])
                    for copy in range(copies):
                        if not (path := paths[crafter, copy]).exists():
                            self._craft(path, shape, batches, craft, crafter.attack.epsilon, copy, bar)
        for crafter in crafters:
            found = [np.load(paths[crafter, copy], mmap_mode="r") for copy in range(copies)]
            self._files[split, crafter] = found

    def _craft(
        self,
        path: Path,
        shape: tuple[int, ...],
        batches: tf.data.Dataset,
        craft: Callable[..., tf.Tensor],
        epsilon: float,
        copy: int,
        bar: Any,
    ) -> None:
        with atomic_file(path) as temporary:
            file = np.lib.format.open_memmap(temporary, "w+", np.int8, shape)
            for number, ((images, rows), labels) in enumerate(batches):
                seed = _fold_in(tf.constant([self.seed, copy]), number)
                file[rows.numpy()] = _quantised(craft(images, labels, seed) - images, epsilon)
                bar.update()
            file.flush()
        write_text(_checksum(path), sha256(path))

    def read(
        self, split: str, source: str, attack: Attack, images: tf.Tensor, rows: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Reads one random copy of each image's stored adversarial examples; traceable.

        Args:
            split: As given to `prepare`.
            source: Name of the source.
            attack: The attack that it crafted with.
            images: float32 `[batch, height, width, 3]`.
            rows: Their numbers, int64 `[batch]`.
            seed: Seed for drawing the copies, int32 `[2]`.
        """
        copies = len(self._files[split, Crafter(source, attack)])
        drawn = tf.random.stateless_uniform([tf.shape(images)[0]], seed, maxval=copies, dtype=tf.int32)
        look_up = partial(self._look_up, split, Crafter(source, attack))
        differences = tf.ensure_shape(tf.numpy_function(look_up, [rows, drawn], tf.int8), images.shape)
        adversarial = images + tf.cast(differences, tf.float32) * (attack.epsilon / _LEVELS)
        return tf.clip_by_value(adversarial, 0.0, 1.0)

    def _look_up(self, split: str, crafter: Crafter, rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        files = self._files[split, crafter]
        found = np.empty((len(rows), *files[0].shape[1:]), np.int8)
        for copy, file in enumerate(files):
            found[drawn == copy] = file[rows[drawn == copy]]
        return found


def fingerprint(network: Any, name: str) -> str:
    """A digest of what a source computes: its layers without their names, and its weights; or its file.

    Args:
        network: The source.
        name: Its name in errors.

    Raises:
        ValueError: If it is neither a Keras model nor loaded from a file.
    """
    if getattr(network, "fingerprint", None):
        return str(network.fingerprint)
    model = network.network if isinstance(network, Recalled) else network
    if not isinstance(model, keras.Model):
        raise ValueError(
            "crafted_once needs sources that are known not to change: a Keras model, or a model that "
            f"models.load_model loads from a file. Received: {type(model).__name__} for {name!r}"
        )
    digest = hashlib.sha256()
    for layer in all_layers(model):
        # A model's configuration consists of its layers'.
        config = {} if isinstance(layer, keras.Model) else {**layer.get_config(), "name": None}
        digest.update(json.dumps([type(layer).__name__, config], default=str, sort_keys=True).encode())
    for weight in network.weights_at(0) if isinstance(network, Recalled) else model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
    return digest.hexdigest()


def _compiled(attack: Attack, network: Any, shape: Sequence[int]) -> Callable[..., tf.Tensor]:
    network = network.at(0) if isinstance(network, Recalled) else network

    # Traced once, for batches of any size.
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *shape], tf.float32), tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int32),
        ],
        autograph=False,
    )  # fmt: skip
    def craft(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return attack(network, images, labels, seed=seed)

    return craft


def _look_at(batches: tf.data.Dataset) -> tuple[tuple[int, ...], str]:
    """The shape of all images together, and a digest of them, their labels and their batches."""
    digest, count, shape = hashlib.sha256(), 0, ()
    for (images, _), labels in batches.as_numpy_iterator():
        digest.update(f"{images.shape}".encode() + images.tobytes() + labels.tobytes())
        count, shape = count + len(images), images.shape[1:]
    return (count, *shape), digest.hexdigest()


def _name(network: str, attack: Attack, images: str, seed: int, copy: int) -> str:
    described: Sequence[Any] = [network, serialize(attack), images, seed, copy]
    return hashlib.sha256(json.dumps(described, default=str, sort_keys=True).encode()).hexdigest()[:32]


def _quantised(differences: tf.Tensor, epsilon: float) -> np.ndarray:
    return tf.cast(tf.round(tf.math.divide_no_nan(_LEVELS * differences, epsilon)), tf.int8).numpy()


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    """Whether a file exists and is as it was written; a damaged file is removed."""
    if not path.exists():
        return False
    if _checksum(path).exists():
        if _checksum(path).read_text(encoding="utf-8") == sha256(path):
            return True
        warnings.warn(f"{path} is damaged; its examples are crafted again.", stacklevel=4)
    path.unlink()
    return False


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            "The disk has too little space for the examples that are crafted once; choose fewer copies, or another "
            f"folder. Received: {needed / 1e9:.1f} GB to craft, {free / 1e9:.1f} GB free in {folder}"
        )
