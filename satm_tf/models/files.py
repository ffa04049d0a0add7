"""The one way to load a model: a file, a folder, a Keras model or a function, all as images in [0, 1] to logits."""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf.models.classifier import ImageClassifier
from satm_tf.models.runtimes import (
    RUNTIMES,
    RuntimeModel,
    SavedModel,
    choose_output,
    first_line,
    load_keras,
    newest_version,
)
from satm_tf.storage import sha256

Model = Callable[..., Any]


def load_model(
    source: str | os.PathLike[str] | Model,
    *,
    image_size: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    output: str | None = None,
    signature: str = "serving_default",
    input_range: tuple[float, float] = (0, 1),
) -> LoadedModel:
    """Loads a classifier from any source as one kind of model: images in [0, 1] to float32 logits.

    Probabilities are recognised and turned into logits: the outputs for eight noise images are non-negative and all sum
    to 1.

    Args:
        source: A `.keras` file of any origin; the folder of a SavedModel, or of numbered versions of one, of which the
            newest is taken; an `.onnx` or a `.tflite` file; a Keras model; or a function from images to outputs
            `[batch, classes]`, which TensorFlow must be able to trace. After the path you may add `#` and the name of
            the output to use.
        image_size: Height and width, for a model that takes any.
        image_shape: Height, width and channels, for a model that takes any or does not say, such as a function; three
            channels if not given.
        output: Name of the output; None takes the only one, or else `logits` or `probabilities`.
        signature: Signature of a SavedModel or of a LiteRT file.
        input_range: The range of pixel values that the model itself expects, such as `(0, 255)`.

    Returns:
        The model. A `LoadedModel` is returned as it is.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If the file is damaged or of another kind, the image size is neither given nor known or is not that
            of the model, or the outputs are not `[batch, classes]`.
        ImportError: If the runtime of an `.onnx` or `.tflite` file is not installed.

    Example:
        >>> network = load_model("exported_models/compact_vgg")
        >>> network(images).shape
        TensorShape([32, 8])
    """
    if isinstance(source, LoadedModel):
        return source
    if not isinstance(source, (str, os.PathLike)):
        if not callable(source):
            raise ValueError(f"A model is a path, a Keras model or a function. Received: {type(source).__name__}")
        name = str(getattr(source, "name", None) or getattr(source, "__name__", type(source).__name__))
        network, fingerprint = source, getattr(source, "fingerprint", None)
    else:
        if "://" in os.fspath(source):
            raise ValueError(
                "A model on a server can only be queried, with a limit on the requests: its address may be a target "
                f"of `satm-tf evaluate`, and a satm_tf.serving.Endpoint one of assess. Received: {os.fspath(source)}"
            )
        path, output = _split(os.fspath(source), output)
        name, path = str(path), _find(path)
        network = _open(path, output, signature)
        chosen = [] if (output, signature) == (None, "serving_default") else [signature, output or ""]
        chosen += [] if tuple(input_range) == (0, 1) else [str([float(value) for value in input_range])]
        fingerprint = hashlib.sha256("#".join([sha256(path), *chosen]).encode()).hexdigest()
    shape = _image_shape(name, network, image_shape or (image_size, image_size, None))
    return LoadedModel(
        network, name=name, image_shape=shape, output=output, fingerprint=fingerprint, input_range=input_range
    )


def load_classifier(path: str | os.PathLike[str]) -> ImageClassifier:
    """Loads an `ImageClassifier` unchanged, to train it further or to export it.

    Args:
        path: Its `.keras` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds something else.

    Example:
        >>> load_classifier("runs/quickstart/networks/co_train/satm/compact_vgg.keras").num_classes
        8
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No network was found at this path. Received: {path}")
    network = load_keras(Path(path))
    if not isinstance(network, ImageClassifier):
        raise ValueError(f"This file must hold an ImageClassifier. Received: {type(network).__name__} in {path}")
    return network


class LoadedModel:
    """A classifier as `load_model` returns it: float32 logits, whatever it was loaded from.

    Args:
        network: Keras model or callable, from images `[batch, *image_shape]` in [0, 1] to logits or probabilities
            `[batch, classes]`, or to several outputs by name.
        name: Its name in messages.
        image_shape: `(height, width, channels)` of the images.
        output: Name of the output, if there are several.
        fingerprint: See below.
        input_range: The range of pixel values that the network expects, (lowest, highest).

    Attributes:
        network: The network itself.
        image_shape: `(height, width, channels)` of the images.
        num_classes: Number of classes.
        fingerprint: A digest of the file and the choices made in it; None for a model that was in memory, whose weights
            may still change.
        differentiable: Whether a gradient reaches the images.
        remote: Whether it is on a server, as `serving.Endpoint` is: called only outside graphs, and no more than
            needed.

    Raises:
        ValueError: If the outputs are not `[batch, classes]`.
    """

    gives_logits = True

    def __init__(
        self,
        network: Model,
        *,
        name: str,
        image_shape: tuple[int, int, int],
        output: str | None = None,
        fingerprint: str | None = None,
        input_range: tuple[float, float] = (0, 1),
    ):
        low, high = map(float, input_range)
        if not low < high:
            raise ValueError(f"input_range must be the lowest and the highest value. Received: {input_range}")
        self.input_range = (low, high)
        self.name, self.image_shape, self.fingerprint = name, image_shape, fingerprint
        self.network, self._output = network, output
        self.remote = bool(getattr(network, "remote", False))
        parameters = inspect.signature(network).parameters.values()
        self._options = (
            {"training": False}
            if any(each.name == "training" or each.kind is each.VAR_KEYWORD for each in parameters)
            else {}
        )
        noise = tf.constant(np.random.default_rng(0).uniform(size=(8, *image_shape)).astype("float32"))
        try:
            answers = self._ask(noise)
        except Exception as error:  # whatever the model's own code raises
            if self.remote:
                raise
            raise ValueError(
                f"{name} gave no outputs for images of shape {image_shape}; check the size. "
                f"Received: {first_line(error)}"
            ) from error
        outputs = np.asarray(self._chosen(answers), "float64")
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise ValueError(
                f"A classifier must give [batch, classes]; if it has another output, choose it as {name}#OUTPUT. "
                f"Received: {list(outputs.shape)}"
            )
        self.num_classes = outputs.shape[1]
        # Outputs for eight noise images that are non-negative and all sum to one are probabilities.
        self._probabilities = bool(
            not getattr(network, "gives_logits", False)
            and np.all(outputs >= 0)
            and np.allclose(outputs.sum(-1), 1, atol=1e-2)
        )
        self.differentiable = not self.remote and self._has_gradient(noise[:1])

    def __call__(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The float32 logits `[batch, num_classes]` of images `[batch, height, width, channels]`, in inference mode."""
        outputs = self._chosen(self._ask(images))
        outputs = tf.ensure_shape(outputs, [images.shape[0], self.num_classes])
        return _logarithm(outputs) if self._probabilities else outputs

    def around(self, network: Model) -> LoadedModel:
        """The same around another network of the same architecture, in memory."""
        other = copy.copy(self)
        other.network, other.fingerprint = network, None
        return other

    def _ask(self, images: tf.Tensor) -> Any:
        low, high = self.input_range
        # Not even by 1: the network must see the images unchanged, to the bit.
        return self.network(images if self.input_range == (0, 1) else low + (high - low) * images, **self._options)

    def _chosen(self, answers: Any) -> tf.Tensor:
        if isinstance(answers, Mapping):
            answers = answers[choose_output(answers, self._output, self.name)]
        elif self._output is not None and not isinstance(self.network, (RuntimeModel, SavedModel)):
            raise ValueError(f"{self.name} has a single output, without a name. Received: output={self._output!r}")
        return tf.cast(answers, tf.float32)

    def _has_gradient(self, image: tf.Tensor) -> bool:
        with tf.GradientTape() as tape:
            tape.watch(image)
            logits = self(image)
        try:
            return tape.gradient(logits, image) is not None
        except LookupError:  # an operation without a gradient
            return False


class FromProbabilities:
    """Wraps a model in memory that gives probabilities as one that gives logits: their logarithm.

    The softmax of the logarithms is the probabilities again, so cross-entropy is exact. If a softmax in float32 has
    saturated, the gradient is already lost: attack the logits themselves if you can get them.

    Args:
        model: Keras model, or a callable that takes `training`, to probabilities `[batch, classes]`.

    Example:
        >>> adversarial = attacks.FGSM(epsilon=0.1)(models.FromProbabilities(model), images, labels)
    """

    gives_logits = True

    def __init__(self, model: Model):
        self.model = model

    def __call__(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The logits `[batch, classes]`."""
        return _logarithm(tf.cast(self.model(images, training=training), tf.float32))


def _logarithm(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.maximum(probabilities, 1e-30))


def _split(text: str, output: str | None) -> tuple[Path, str | None]:
    """The path and the output of `PATH#OUTPUT`; an existing path is never split, even if it contains `#`."""
    before, mark, behind = text.rpartition("#")
    if not mark or Path(text).exists():
        return Path(text), output
    if output is not None and output != behind:
        raise ValueError(f"Choose the output only once. Received: {text} and output={output!r}")
    return Path(before), behind


def _find(path: Path) -> Path:
    """The file, or the folder of the SavedModel, that a path refers to."""
    if not path.exists():
        raise FileNotFoundError(f"No network was found at this path. Received: {path}")
    if path.is_file() and path.suffix in (".keras", *RUNTIMES):
        return path
    version = newest_version(path)
    if version is None:
        raise ValueError(
            f"A network must be a .keras file, an {' or a '.join(sorted(RUNTIMES))} file, a folder with a "
            f"saved_model.pb, or a folder of numbered versions of one. Received: {path}"
        )
    return version


def _open(path: Path, output: str | None, signature: str) -> Model:
    if path.suffix == ".keras":
        return load_keras(path)
    return RuntimeModel(path, output, signature) if path.suffix in RUNTIMES else SavedModel(path, output, signature)


def _image_shape(
    name: str, network: Model, requested: tuple[int | None, int | None, int | None]
) -> tuple[int, int, int]:
    """The image shape that the network declares, completed by the requested one."""
    declared = getattr(network, "image_shape", None)
    if declared is None and isinstance(network, keras.Model):
        # A subclassed model that has not been called yet has none.
        declared = getattr(network, "input_shape", (None,))[1:] or None
    declared = (None, None, None) if declared is None else tuple(declared)
    if len(declared) != 3 or not all(side is None or isinstance(side, int) for side in declared):
        raise ValueError(
            f"A classifier must take one batch of images [batch, height, width, channels]. Received: {declared} of "
            f"{name}"
        )
    if any(has and asked and has != asked for has, asked in zip(declared, requested, strict=True)):
        raise ValueError(f"{name} needs images of shape {declared}. Received: {requested}")
    height, width, channels = (has or asked for has, asked in zip(declared, requested, strict=True))
    if height is None or width is None:
        raise ValueError(f"This network accepts images of any size; give image_size (--image_size). Received: {name}")
    if channels not in (1, 3, None):
        raise ValueError(
            f"Images must have one or three channels, after height and width. Received: {declared} as the images of "
            f"{name}"
        )
    return height, width, channels or 3
