"""What the tests of the models share.

One is the real keras-vggface 0.6, made importable under Keras 3, as a reference. It was written for Keras 2: it imports
modules that Keras 3 has moved, and names layers with "/", which Keras 3 forbids. The modules stand in for it during its
import only, and its layers are renamed as they are made.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import h5py
import keras
import numpy as np
import pytest

from satm_tf.models import get_backbone

_LAYERS = ("Conv2D", "BatchNormalization", "Activation", "Dense")


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


def _without_slash(layer: type[keras.layers.Layer]) -> Callable[..., keras.layers.Layer]:
    def make(*args: Any, **kwargs: Any) -> keras.layers.Layer:
        if "name" in kwargs:
            kwargs["name"] = kwargs["name"].replace("/", ".")
        return layer(*args, **kwargs)

    return make


@dataclass(frozen=True)
class KerasVGGFace:
    """keras-vggface's `preprocess_input`, and its networks by our names."""

    preprocess_input: Callable[..., np.ndarray]
    builders: dict[str, Callable[..., keras.Model]]

    def build(self, name: str, *, include_top: bool = False, size: int = 224) -> keras.Model:
        """A network of fresh weights, for images of `size` already preprocessed."""
        return self.builders[name](include_top=include_top, weights=None, input_shape=(size, size, 3))


@pytest.fixture(scope="session")
def keras_vggface() -> KerasVGGFace:
    for package, version in (("keras_applications", "1.0.8"), ("keras_vggface", "0.6")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} {version} is in the test extra")
    layer_utils = _module("keras.utils.layer_utils")
    stand_ins = {
        "keras.utils.layer_utils": layer_utils,
        "keras.utils.data_utils": _module("keras.utils.data_utils", get_file=keras.utils.get_file),
        "keras.engine": _module("keras.engine"),
        "keras.engine.topology": _module("keras.engine.topology", get_source_inputs=keras.utils.get_source_inputs),
    }
    with (
        mock.patch.dict(sys.modules, stand_ins),
        mock.patch.object(keras.utils, "layer_utils", layer_utils, create=True),
    ):
        from keras_vggface import models, utils
    for layer in _LAYERS:
        setattr(models, layer, _without_slash(getattr(keras.layers, layer)))
    builders = {"vgg16_face": models.VGG16, "resnet50_face": models.RESNET50, "senet50_face": models.SENET50}
    return KerasVGGFace(utils.preprocess_input, builders)


@pytest.fixture(scope="session")
def vggface_backbones() -> Callable[[str], keras.Model]:
    """The VGGFace backbones by name, for images of 224 x 224, built once: set the weights that a test needs."""
    return functools.cache(lambda name: get_backbone(name).build((224, 224, 3)))


@pytest.fixture(scope="session")
def write_keras2() -> Callable[[Path, Mapping[str, Mapping[str, np.ndarray]]], None]:
    """Writes weights, by layer and by weight, as Keras 2's `save_weights` did.

    One group a layer, weightless ones too, listed in the attribute `layer_names`; in it the attribute `weight_names`
    and data sets named `<layer>/<weight>:0`, whose "/" make groups within groups.
    """

    def write(path: Path, layers: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = np.array(list(layers), "S")
            file.attrs["backend"] = b"tensorflow"
            file.attrs["keras_version"] = b"2.0.8"
            for layer, weights in layers.items():
                group = file.create_group(layer)
                group.attrs["weight_names"] = np.array([f"{layer}/{name}:0" for name in weights], "S")
                for name, array in weights.items():
                    group.create_dataset(f"{layer}/{name}:0", data=array)

    return write
