"""Other formats than the SavedModel: LiteRT for small devices, ONNX for other runtimes.

Both take `images`, float32 `[batch, height, width, 3]` in [0, 1], and return `probabilities`, float32 `[batch,
classes]`; only the SavedModel decodes files, names classes and marks invalid images. The extras `lite` and `onnx`
install the converters and runtimes. `models.load_model` loads the files.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf.configurable import look_up
from satm_tf.models import ImageClassifier
from satm_tf.models.runtimes import RuntimeModel
from satm_tf.serving.verification import VerificationError
from satm_tf.storage import atomic_file


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        suffix: The suffix of its files.
        tolerance: How much a probability may differ from the model's, on the samples that a conversion is verified on.
        convert: Writes a file from the model and calibration images.
        calibrated: Whether the conversion needs calibration images to find the range of every value.
    """

    suffix: str
    tolerance: float
    convert: Callable[[ImageClassifier, np.ndarray | None], bytes]
    calibrated: bool = False


def convert(
    model: ImageClassifier, path: str | Path, format: str, *, samples: np.ndarray, calibration: np.ndarray | None = None
) -> Path:
    """Writes the model in another format, complete or not at all, if its answers match the model's.

    A model that computes in half precision is written, and compared, as a float32 model with the same weights: the
    other formats do not support half precision for all operations.

    Args:
        model: The classifier.
        path: The file; the format's own suffix is added.
        format: One of `FORMATS`: "litert_float32", "litert_float16" (weights in half precision), "litert_int8" (weights
            and activations in eight bits, input and output in float32), "onnx".
        samples: Images on which the file is compared with the model, float32 `[samples, *model.image_shape]` in [0, 1].
        calibration: A few hundred images like those in use; only "litert_int8" needs them.

    Returns:
        The file.

    Raises:
        ValueError: If the format is unknown, or calibration images are missing, or given for a format that does not use
            them.
        VerificationError: If a probability differs by more than the format's tolerance. Nothing is written then.

    Example:
        >>> convert(network, "compact_vgg", "litert_int8", samples=images[:8], calibration=images)
        PosixPath('compact_vgg.litert_int8.tflite')
    """
    kind = look_up("format", format, FORMATS)
    if kind.calibrated != (calibration is not None and len(calibration) > 0):
        word = "needs" if kind.calibrated else "takes no"
        raise ValueError(f"Format {format!r} {word} calibration images. Received: {type(calibration).__name__}")
    model = _in_float32(model)
    path = Path(f"{path}.{format}{kind.suffix}")
    with atomic_file(path) as written:
        written.write_bytes(kind.convert(model, calibration))
        expected = tf.nn.softmax(model(tf.constant(samples), training=False)).numpy()
        difference = float(np.abs(RuntimeModel(written).run(samples) - expected).max())
        # This also refuses NaN.
        if not difference <= kind.tolerance:
            raise VerificationError(
                f"In {format}, a probability may differ by at most {kind.tolerance:g} from the model's. Received: "
                f"{difference:g}"
            )
    return path


def _in_float32(model: ImageClassifier) -> ImageClassifier:
    described = json.dumps(keras.saving.serialize_keras_object(model))
    single = re.sub('"mixed_b?float16"', '"float32"', described)
    if single == described:
        return model
    twin = keras.saving.deserialize_keras_object(json.loads(single))
    twin.set_weights(model.get_weights())
    return twin


def _probabilities(model: ImageClassifier) -> tuple[Callable[..., Any], list[tf.TensorSpec]]:
    signature = [tf.TensorSpec([None, *model.image_shape], tf.float32, name="images")]
    return lambda images: {"probabilities": tf.nn.softmax(model(images, training=False))}, signature


def _litert(model: ImageClassifier, calibration: np.ndarray | None, precision: Any = None) -> bytes:
    # Through a SavedModel: from a concrete function of a Keras model, the converter keeps variables in the graph and
    # silently loses their values.
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


def _onnx(model: ImageClassifier, calibration: np.ndarray | None) -> bytes:
    import tf2onnx

    function, signature = _probabilities(model)
    converted, _ = tf2onnx.convert.from_function(
        tf.function(function, input_signature=signature, autograph=False), input_signature=signature
    )
    return converted.SerializeToString()


FORMATS = {
    # Other kernels, the same numbers: the SavedModel's tolerance.
    "litert_float32": Format(".tflite", 1e-5, _litert),
    # A weight keeps 11 of its 24 bits.
    "litert_float16": Format(".tflite", 1e-2, lambda model, _: _litert(model, None, tf.float16)),
    # Every value keeps eight bits. A broken conversion is off by far more; `compare` measures the cost.
    "litert_int8": Format(".tflite", 0.25, lambda model, images: _litert(model, images, tf.int8), calibrated=True),
    "onnx": Format(".onnx", 1e-5, _onnx),
}
"""The formats by name."""
