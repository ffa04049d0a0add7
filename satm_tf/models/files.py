"""Networks as they come from files, all in one shape: images in [0, 1] in, logits out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from satm_tf.configurable import unknown_name

_SIGNATURE = "serving_default"

Model = Callable[..., tf.Tensor]


class LoadedModel:
    """A network from a file, which gives logits whether the file's does or gives probabilities.

    Args:
        path: A `.keras` file, ours or any other; the folder of a SavedModel; or a folder of numbered versions of one,
            of which the last is taken. Behind a `#` may stand which output of a SavedModel to use; without, it is the
            only one, or else `logits` or `probabilities`.
        image_size: Height and width, for a network that takes any.

    Attributes:
        image_shape: `(height, width, channels)` of the images.
        num_classes: Number of classes.
        fingerprint: A digest of the file's bytes.

    Raises:
        ValueError: If the path is none of these, the size is neither given nor known, or the outputs are not
            `[batch, classes]`.
        FileNotFoundError: If there is nothing at the path.

    Example:
        >>> network = LoadedModel("exported_models/compact_vgg")
        >>> network(images).shape
        TensorShape([32, 8])
    """

    def __init__(self, path: str, image_size: int | None = None):
        name, _, output = path.partition("#")
        place = _find(Path(name))
        if place.is_dir():
            network: Any = FromSavedModel(str(place), output or _choose_output(place))
            shape = network.image_shape
        else:
            network = keras.saving.load_model(place, compile=False)
            shape = getattr(network, "image_shape", None) or network.input_shape[1:]
        sides = [side or image_size for side in shape[:2]]
        if None in sides:
            raise ValueError(f"This network takes images of any size; give --image_size. Received: {path}")
        self.image_shape = (*sides, shape[2])
        self.fingerprint = _digest(place, output)
        probe = np.random.default_rng(0).uniform(size=(8, *self.image_shape)).astype("float32")
        outputs = np.asarray(network(tf.constant(probe), training=False), "float64")
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise ValueError(f"A classifier gives [batch, classes]. Received: outputs {outputs.shape} of {path}")
        self.num_classes = outputs.shape[1]
        # Logits of eight noise images that all add up to one, none of them negative, are probabilities.
        probabilities = bool(np.all(outputs >= 0) and np.allclose(outputs.sum(-1), 1, atol=1e-2))
        self._network = FromProbabilities(network) if probabilities else network

    def __call__(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The float32 logits `[batch, num_classes]` of images `[batch, height, width, channels]`."""
        return tf.cast(self._network(images, training=False), tf.float32)


def _find(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"There is no network at this path. Received: {path}")
    if path.suffix == ".keras" or (path / "saved_model.pb").exists():
        return path
    versions = [each for each in path.glob("*/saved_model.pb") if each.parent.name.isdigit()]
    if not versions:
        raise ValueError(
            "A network is a .keras file, a folder with a saved_model.pb, or a folder of numbered versions of one. "
            f"Received: {path}"
        )
    return max(versions, key=lambda each: int(each.parent.name)).parent


def _choose_output(folder: Path) -> str | None:
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    outputs = saved.meta_graphs[0].signature_def[_SIGNATURE].outputs
    return next((name for name in ("logits", "probabilities") if len(outputs) > 1 and name in outputs), None)


def _digest(place: Path, output: str) -> str:
    digest = hashlib.sha256(output.encode())
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.is_file():
            digest.update(f"{file.relative_to(place.parent)}".encode() + file.read_bytes())
    return digest.hexdigest()


class FromProbabilities:
    """A network that gives probabilities, as one that gives logits: their logarithm.

    The softmax of the logarithms is the probabilities again, so cross-entropy is exact. Where a softmax in float32 has
    saturated, the gradient is lost before it gets here: attack the logits themselves where they can be had.

    Args:
        model: Keras model, or a callable that takes `training`, to probabilities `[batch, classes]`.

    Example:
        >>> adversarial = attacks.FGSM(epsilon=0.1)(models.FromProbabilities(model), images, labels)
    """

    def __init__(self, model: Model):
        self.model = model

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The logits `[batch, classes]`."""
        probabilities = tf.cast(self.model(images, training=training), tf.float32)
        return tf.math.log(tf.maximum(probabilities, 1e-30))


class FromSavedModel:
    """A SavedModel, as a network: one output of one signature.

    Args:
        path: Folder with `saved_model.pb`.
        output: Name of the output that holds logits; put a `FromProbabilities` around it if it holds probabilities.
            None takes the only one.
        signature: Name of the signature; it must take one tensor, the images.

    Attributes:
        image_shape: `(height, width, channels)` that the signature takes, each None where any will do.

    Raises:
        ValueError: If there is no such signature or output, several outputs and none chosen, or more than one input.

    Example:
        >>> network = models.FromProbabilities(models.FromSavedModel("exported_models/resnet/1", "probabilities"))
        >>> adversarial = attacks.FGSM(epsilon=0.1)(network, images, labels)
    """

    def __init__(self, path: str, output: str | None = None, *, signature: str = "serving_default"):
        # The loaded object owns the variables: they go when it goes.
        self._loaded: Any = tf.saved_model.load(path)
        signatures = self._loaded.signatures
        if signature not in signatures:
            raise unknown_name("signature", signature, signatures)
        self._function = signatures[signature]
        outputs = self._function.structured_outputs
        if output is None and len(outputs) != 1:
            raise ValueError(f"This SavedModel has several outputs; choose one of {', '.join(sorted(outputs))}.")
        self._output = output or next(iter(outputs))
        if self._output not in outputs:
            raise unknown_name("output of the SavedModel", output, outputs)
        if len(self._function.structured_input_signature[1]) != 1:
            raise ValueError(f"The signature must take one tensor, the images. Received: {signature!r} of {path}")
        ((self._input, spec),) = self._function.structured_input_signature[1].items()
        self.image_shape = tuple(spec.shape[1:])

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """What the chosen output holds, `[batch, classes]`; a SavedModel has one mode, whatever `training` says."""
        return self._function(**{self._input: images})[self._output]
