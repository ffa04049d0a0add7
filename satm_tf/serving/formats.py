"""Other formats than the SavedModel: LiteRT for small devices, ONNX for other runtimes.

Both take `images`, float32 `[batch, height, width, 3]` in [0, 1], and give `probabilities`, float32
`[batch, classes]`; decoding files, labels and the check for images that are none stay with the SavedModel. The extras
`lite` and `onnx` bring what converts and runs them.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf.configurable import unknown_name
from satm_tf.models import ImageClassifier
from satm_tf.serving.verification import VerificationError

Network = Callable[[np.ndarray], np.ndarray]
"""Images float32 `[batch, height, width, 3]` in [0, 1], in; probabilities float32 `[batch, classes]`, out."""


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        suffix: How its files end.
        tolerance: How much a probability may differ from the model's, on the samples that a conversion is verified on.
        convert: Writes a file from the model and calibration images.
        load: Makes a function of a file.
        calibrated: Whether the conversion needs images to find the range of every value.
    """

    suffix: str
    tolerance: float
    convert: Callable[[ImageClassifier, np.ndarray | None], bytes]
    load: Callable[[Path], Network]
    calibrated: bool = False


def convert(
    model: ImageClassifier, path: str | Path, format: str, *, samples: np.ndarray, calibration: np.ndarray | None = None
) -> Path:
    """Writes the model in another format, as a whole or not at all, once it was seen to answer as the model does.

    A model that computes in half precision is written, and compared, as one of the same weights in float32: the other
    formats' kernels take no half precision for all operations.

    Args:
        model: The classifier.
        path: The file; the format's own suffix is added.
        format: One of `FORMATS`: "litert_float32", "litert_float16" (weights in half precision), "litert_int8" (weights
            and activations in eight bits, input and output in float32), "onnx".
        samples: Images on which the file is compared with the model, float32 `[samples, *model.image_shape]` in [0, 1].
        calibration: Images like those that the model will see, some hundred; "litert_int8" alone needs them.

    Returns:
        The file.

    Raises:
        ValueError: If the format is unknown, or calibration images are missing or brought in vain.
        VerificationError: If a probability differs by more than the format's tolerance. Nothing is written then.

    Example:
        >>> convert(network, "compact_vgg", "litert_int8", samples=images[:8], calibration=images)
        PosixPath('compact_vgg.litert_int8.tflite')
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    kind = FORMATS[format]
    if kind.calibrated != (calibration is not None and len(calibration) > 0):
        word = "needs" if kind.calibrated else "takes no"
        raise ValueError(f"Format {format!r} {word} calibration images. Received: {type(calibration).__name__}")
    model = _in_float32(model)
    path = Path(f"{path}.{format}{kind.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        written = Path(folder) / f"model{kind.suffix}"
        written.write_bytes(kind.convert(model, calibration))
        expected = tf.nn.softmax(model(tf.constant(samples), training=False)).numpy()
        difference = float(np.abs(kind.load(written)(samples) - expected).max())
        # A NaN is not below the tolerance either.
        if not difference <= kind.tolerance:
            raise VerificationError(
                f"In {format} a probability may differ by {kind.tolerance:g} from the model's. Received: {difference:g}"
            )
        os.replace(written, path)
    return path


def _in_float32(model: ImageClassifier) -> ImageClassifier:
    described = json.dumps(keras.saving.serialize_keras_object(model))
    single = re.sub('"mixed_b?float16"', '"float32"', described)
    if single == described:
        return model
    twin = keras.saving.deserialize_keras_object(json.loads(single))
    twin.set_weights(model.get_weights())
    return twin


def load(path: str | Path) -> Network:
    """A converted model as a function; see `Network`.

    Args:
        path: The file.

    Raises:
        ValueError: If its suffix is not that of a format.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    loaders = {kind.suffix: kind.load for kind in FORMATS.values()}
    if path.suffix not in loaders:
        raise ValueError(f"A converted model ends in {' or '.join(sorted(loaders))}. Received: {path}")
    if not path.is_file():
        raise FileNotFoundError(f"No such file: {path}")
    return loaders[path.suffix](path)


def _probabilities(model: ImageClassifier) -> tuple[Callable[..., Any], list[tf.TensorSpec]]:
    signature = [tf.TensorSpec([None, *model.image_shape], tf.float32, name="images")]
    return lambda images: {"probabilities": tf.nn.softmax(model(images, training=False))}, signature


def _litert(model: ImageClassifier, calibration: np.ndarray | None, precision: Any = None) -> bytes:
    # By way of a SavedModel: from a concrete function of a Keras model the converter keeps variables in the graph and
    # loses their values, without an error.
    with tempfile.TemporaryDirectory() as folder:
        function, signature = _probabilities(model)
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serving_default", function, input_signature=signature)
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision is tf.float16:
            converter.target_spec.supported_types = [precision]
        if calibration is not None:

            def images() -> Iterator[list[np.ndarray]]:
                for image in np.asarray(calibration, np.float32):
                    yield [image[None]]

            converter.representative_dataset = images
        return converter.convert()


def _load_litert(path: Path) -> Network:
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_path=str(path), num_threads=os.cpu_count()).get_signature_runner("serving_default")
    return lambda images: run(images=np.asarray(images, np.float32))["probabilities"]


def _onnx(model: ImageClassifier, calibration: np.ndarray | None) -> bytes:
    import tf2onnx

    function, signature = _probabilities(model)
    converted, _ = tf2onnx.convert.from_function(
        tf.function(function, input_signature=signature, autograph=False), input_signature=signature
    )
    return converted.SerializeToString()


def _load_onnx(path: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": np.asarray(images, np.float32)})[0]


FORMATS = {
    # Other kernels, the same numbers: as close as the SavedModel has to be.
    "litert_float32": Format(".tflite", 1e-5, _litert, _load_litert),
    # A weight keeps 11 of its 24 bits.
    "litert_float16": Format(".tflite", 1e-2, lambda model, _: _litert(model, None, tf.float16), _load_litert),
    # Every value keeps eight bits. A conversion gone wrong is off by far more; what it costs, `compare` measures.
    "litert_int8": Format(
        ".tflite", 0.25, lambda model, images: _litert(model, images, tf.int8), _load_litert, calibrated=True
    ),
    "onnx": Format(".onnx", 1e-5, _onnx, _load_onnx),
}
"""The formats by name."""
