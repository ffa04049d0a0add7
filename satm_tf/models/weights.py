"""Weights from files: downloaded once, checked completely, recorded by their SHA-256."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np

from satm_tf.models.hdf5 import open_weights
from satm_tf.storage import sha256


@dataclass(frozen=True)
class PublishedWeights:
    """Where the weights of a backbone are published.

    Attributes:
        url: Address of the file; its last part is the name of the file.
        folder: Folder below Keras's own (`~/.keras`, or `$KERAS_HOME`) in which the file is kept.
        checksum: MD5 or SHA-256 of the file, if its publishers give one.
        beside: Files that belong to this one and are stored in the same folder.
    """

    url: str
    folder: str = "models"
    checksum: str | None = None
    beside: tuple[PublishedWeights, ...] = ()

    @property
    def cached(self) -> Path:
        """Where the downloaded file is stored."""
        home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
        return home / self.folder / self.url.rsplit("/", 1)[-1]


def find_weights(backbone: str, weights: str, published: Mapping[str, PublishedWeights]) -> Path:
    """The file that `weights` refers to: one of `published`, which is downloaded once, or the path of a file.

    Raises:
        ValueError: If `weights` is neither.
        OSError: If the download fails; the message says which file to fetch and where to put it.
    """
    if weights in published:
        return _download(published[weights])
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    known = ", ".join(repr(name) for name in published) or "none"
    raise ValueError(
        f"`weights` of backbone {backbone!r} must be a file or published weights (published: {known}). Give "
        f"the path of an HDF5 file, or None for random weights. Received: weights={weights!r}"
    )


def _download(weights: PublishedWeights) -> Path:
    for other in weights.beside:
        _download(other)
    name = weights.url.rsplit("/", 1)[-1]
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    try:
        path = keras.utils.get_file(
            name, weights.url, cache_dir=home, cache_subdir=weights.folder, file_hash=weights.checksum
        )
    except Exception as error:  # get_file raises nothing narrower
        raise OSError(
            f"Could not download {weights.url} ({error}). Download that file on a machine with internet access and "
            f"put it at {home / weights.folder / name}, or give its path as weights=."
        ) from error
    return Path(path)


def weights_record(weights: str, path: Path) -> dict[str, str]:
    """A run's record of its starting weights: the requested ones, the file's name, and its SHA-256."""
    return {"weights": weights, "file": path.name, "sha256": sha256(path)}


def load_weights(backbone: keras.Model, path: Path) -> None:
    """Loads a whole backbone from a weights file written by Keras 2 or Keras 3, matching layers in order.

    Raises:
        ValueError: If the file is damaged, belongs to another architecture, or holds non-finite numbers. The backbone
            then keeps its weights.
    """
    with open_weights(path):
        pass
    kept = backbone.get_weights()
    try:
        backbone.load_weights(path)
        for variable in backbone.weights:
            _check_finite(path, variable.path, np.asarray(variable))
    except Exception as error:  # Keras and h5py raise many types for a damaged file
        backbone.set_weights(kept)
        raise ValueError(
            f"{path} does not hold the weights of {backbone.name!r} without its classification layer: {error} "
            "Nothing was loaded."
        ) from error


def _check_finite(path: Path, name: str, values: np.ndarray) -> None:
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise ValueError(
            f"The weights in {path} must be finite numbers. Received: {np.count_nonzero(~np.isfinite(values))} others "
            f"in {name!r}."
        )


def load_weights_by_name(backbone: keras.Model, path: Path) -> None:
    """Loads a whole backbone from a Keras 2 weights file, whose layer names may have "/" where Keras 3 has ".".

    Every weighted layer of the backbone must be in the file, with the same shapes; extra layers, such as those of a
    classification head, are ignored. If the file shares no name with the backbone, layers are matched in order, as
    Keras 2 did by default, and their number must agree. Nothing is unpickled, and nothing is set before everything is
    checked. A file that Keras 3 wrote is loaded too.

    Raises:
        ValueError: If the file is damaged, a layer is missing, or a weight has another shape or is not finite; the
            message names the first.
    """
    with open_weights(path) as file:
        group = file.get("model_weights", file)
        if "layer_names" in group.attrs:
            values = _read_keras2(backbone, group, path)
            for layer, arrays in values.items():
                layer.set_weights(arrays)
            return
    load_weights(backbone, path)


def _read_keras2(backbone: keras.Model, group: h5py.Group, path: Path) -> dict[keras.layers.Layer, list[np.ndarray]]:
    layers = [layer for layer in backbone.layers if layer.weights]
    saved: dict[str, list[str]] = {}
    for name in _names(group, "layer_names"):
        if weights := _names(group[name], "weight_names"):
            saved[name.replace("/", ".")] = [f"{name}/{weight}" for weight in weights]
    wanted = [layer.name for layer in layers]
    if len(saved) == len(layers) and not saved.keys() & set(wanted):
        wanted = list(saved)
    missing = [name for name in wanted if name not in saved]
    if missing:
        raise ValueError(
            f"{path} holds {len(layers) - len(missing)} of the {len(layers)} weighted layers of {backbone.name!r}; "
            f"the first missing is {missing[0]!r}. Nothing was loaded."
        )
    values = {}
    for layer, name in zip(layers, wanted, strict=True):
        found = [group[weight] for weight in saved[name]]
        expected, received = ([tuple(x.shape) for x in weights] for weights in (layer.weights, found))
        if expected != received:
            raise ValueError(
                f"Layer {name!r} in {path} has weights of different shapes than in {backbone.name!r}. Nothing was "
                f"loaded. Expected: {expected}. Received: {received}"
            )
        values[layer] = [np.asarray(each) for each in found]
        for weight, array in zip(saved[name], values[layer], strict=True):
            _check_finite(path, weight, array)
    return values


def _names(group: h5py.Group, attribute: str) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs[attribute]]
