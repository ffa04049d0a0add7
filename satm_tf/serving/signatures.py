"""The three signatures of an exported classifier, as functions in its graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from satm_tf.detection import FittedDetector
from satm_tf.detection.base import Seen, look
from satm_tf.models import ImageClassifier
from satm_tf.serving.decoding import decode_batch

ANSWERS = ("probabilities", "class_id", "label", "valid")
OUTPUTS = {
    "serving_default": ANSWERS,
    "serving_bytes": ANSWERS,
    "features": ("features", "valid"),
}
"""The signatures and their outputs."""

DETECTED = ("adversarial_score", "suspicious")
"""What each gives besides, where the export has a detector."""

INPUTS = {"serving_default": "images", "serving_bytes": "image_bytes", "features": "images"}
"""The input of each signature."""


def outputs(signature: str, detected: bool) -> tuple[str, ...]:
    """What a signature returns, in an export with a detector or without."""
    return (*OUTPUTS[signature], *(DETECTED if detected else ()))


# A tolerance above rounding errors in the caller's pixels, and below any other plausible range.
_SLACK = 1e-3


def write(
    model: ImageClassifier, label_file: str | Path, folder: str | Path, detector: FittedDetector | None = None
) -> None:
    """Writes a SavedModel with three signatures.

    `serving_default` takes `images`, float32 `[batch, height, width, 3]` in [0, 1]; `serving_bytes` takes
    `image_bytes`, str `[batch]`, JPEG or PNG files of any size. Both return `probabilities` float32 `[batch, classes]`,
    `class_id` int64 `[batch]`, `label` str `[batch]` and `valid` bool `[batch]`. `features` takes `images` and returns
    `features` float32 `[batch, feature_size]` and `valid`.

    With a detector all three also give `adversarial_score` float32 `[batch]` and `suspicious` bool `[batch]`, whether
    the score exceeds the detector's threshold.

    An image that does not decode, or has a pixel that is not a number or is outside [0, 1], does not affect the others:
    `valid` is false, its probabilities, features and score are zeros, its class is -1, its label empty, and it
    is not suspicious. A batch may be empty.

    Args:
        model: The classifier.
        label_file: A text file with a line for each class, which becomes an asset of the SavedModel.
        folder: The folder to write, which must not exist.
        detector: A detector that was fitted to the classifier.
    """
    # A table, not a constant: its file is part of the export, and class -1 has the empty label.
    place = tf.lookup.TextFileIndex
    lines = tf.lookup.TextFileInitializer(str(label_file), tf.int64, place.LINE_NUMBER, tf.string, place.WHOLE_LINE)
    labels = tf.lookup.StaticHashTable(lines, default_value="")
    height, width, channels = model.image_shape
    shape = [None, height, width, channels]

    def look_at(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # The features once, for logits and score.
        seen = look(model, images)
        return {"probabilities": tf.nn.softmax(seen.logits), "features": seen.features, **score(detector, seen)}

    def answer(signature: str, images: tf.Tensor, valid: tf.Tensor) -> dict[str, tf.Tensor]:
        found = {
            name: tf.where(valid[:, None] if len(value.shape) > 1 else valid, value, tf.zeros_like(value))
            for name, value in _run(look_at, images).items()
        }
        if signature != "features":
            class_id = tf.where(valid, tf.argmax(found["probabilities"], -1), -1)
            found |= {"class_id": class_id, "label": labels.lookup(class_id)}
        return {name: value for name, value in {**found, "valid": valid}.items() if name in expected[signature]}

    def serving_default(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer("serving_default", *_checked(images, shape))

    def serving_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels, valid = decode_batch(image_bytes, (height, width))
        return answer("serving_bytes", tf.cast(pixels, tf.float32) / 255.0, valid)

    def features(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer("features", *_checked(images, shape))

    expected = {signature: outputs(signature, detector is not None) for signature in OUTPUTS}
    images = tf.TensorSpec(shape, tf.float32, name="images")
    specifications = {"images": images, "image_bytes": tf.TensorSpec([None], tf.string, name="image_bytes")}
    # Not keras.export.ExportArchive, which in Keras 3.8 loses the table even if it is tracked.
    module = tf.Module()
    module.weights = [variable.value for part in (model, detector) if part for variable in part.variables]
    module.labels = labels
    signatures = {
        function.__name__: tf.function(
            function, input_signature=[specifications[INPUTS[function.__name__]]], autograph=False
        )
        for function in (serving_default, serving_bytes, features)
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)


def score(detector: FittedDetector | None, seen: Seen) -> dict[str, tf.Tensor]:
    """A detector's outputs, by name; none without one."""
    if detector is None:
        return {}
    scores = detector.score_of(seen)
    return {"adversarial_score": scores, "suspicious": scores > detector.threshold}


def _checked(images: tf.Tensor, shape: list[int | None]) -> tuple[tf.Tensor, tf.Tensor]:
    """The images, with zeros for invalid ones, and whether each is valid."""
    # The signature alone does not enforce height and width at run time.
    images = tf.ensure_shape(images, shape)
    # Comparisons with NaN are false.
    valid = tf.reduce_all((images >= -_SLACK) & (images <= 1 + _SLACK), [1, 2, 3])
    return tf.where(valid[:, None, None, None], images, 0.0), valid


def _run(network: Callable[[tf.Tensor], Any], images: tf.Tensor) -> Any:
    # With oneDNN, an empty batch fails in convolutions and batch normalisation, so it gets one image, whose row is
    # removed. By concatenation: a pad would be merged into the following convolution and lost.
    shape = tf.shape(images)
    blank = tf.zeros(tf.concat([tf.cast(shape[:1] == 0, tf.int32), shape[1:]], 0))
    return tf.nest.map_structure(lambda output: output[: shape[0]], network(tf.concat([images, blank], 0)))
