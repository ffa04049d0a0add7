"""Checks that a written SavedModel answers as the model does, and that an older server can run it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from satm_tf.data import decoding
from satm_tf.detection import FittedDetector
from satm_tf.detection.base import look
from satm_tf.models import ImageClassifier
from satm_tf.serving.signatures import DETECTED, OUTPUTS, outputs, score

TOLERANCES = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The largest difference of a probability, and of a feature: a relative one if it is above 1 in size.

A network that computes in half precision rounds differently for every batch size, so its answers agree only to one unit
of the last digit.
"""

# In units of these and of the score's spread: it magnifies rounding, where it divides by small deviations or steps from
# level to level.
_OF_SCORES = 100
SCORE, SUSPICIOUS = DETECTED


class VerificationError(RuntimeError):
    """The written model differs from the original."""


def tolerance(model: ImageClassifier) -> float:
    """The tolerance of a served network: 1e-5, or one last digit if it computes in half precision."""
    return max(TOLERANCES.get(layer.compute_dtype, 0.0) for layer in [model, *model.backbone.layers])


def verify(
    folder: str | Path,
    model: ImageClassifier,
    labels: Sequence[str],
    samples: np.ndarray,
    detector: FittedDetector | None = None,
) -> dict[str, float]:
    """Loads a SavedModel and compares it with the original model, through every signature.

    `serving_bytes` gets the samples as PNGs, one of them enlarged two and a half times as a JPEG, which must decode as
    `satm_tf.data` decodes it for training, and one file that is not an image. Each signature is also called with a
    single image and with none. The samples are float32 `[samples, *model.image_shape]` in [0, 1], of 8-bit levels, at
    least one. Returns the largest difference of a probability or feature found, for each signature.

    Raises:
        VerificationError: If a signature or output is missing, a value differs by more than `tolerance`, or the graph
            holds an operation that TensorFlow 2.15 does not know.
    """
    newer = newer_operations(folder)
    if newer:
        raise VerificationError(f"TensorFlow 2.15 does not know these operations of the graph: {', '.join(newer)}")
    # The signatures live as long as the loaded object.
    loaded: Any = tf.saved_model.load(str(folder))
    served = loaded.signatures
    _check_names({name: list(function.structured_outputs) for name, function in served.items()}, detector is not None)
    reference = tf.function(
        lambda images: {
            "probabilities": tf.nn.softmax(model(images, training=False)),
            "features": model.features(images),
            **score(detector, look(model, images)),
        },
        autograph=False,
    )
    expected = {name: value.numpy() for name, value in reference(tf.constant(samples)).items()}
    pngs, (jpeg, decoded) = [_png(sample) for sample in samples], _jpeg(samples[0])
    beside = {name: value.numpy() for name, value in reference(tf.constant(decoded[None])).items()}
    files = tf.constant([*pngs, jpeg, b"not an image"])
    of_files = {
        name: np.concatenate([expected[name], beside[name], np.zeros_like(beside[name])])
        for name in expected.keys() - {"features"}
    }

    check = functools.partial(_compare, labels=labels, allowed=tolerance(model), detector=detector)
    count = len(samples)
    differences = dict.fromkeys(OUTPUTS, 0.0)
    for rows in (slice(0), slice(1), slice(count)):
        images = tf.constant(samples[rows])
        for name in ("serving_default", "features"):
            answer = served[name](images=images)
            wanted = {key: value[rows] for key, value in expected.items() if key in answer}
            differences[name] = max(differences[name], check(name, answer, wanted))
    for rows in (slice(0), slice(1), slice(count, None), slice(None)):
        answer = served["serving_bytes"](image_bytes=files[rows])
        found = check("serving_bytes", answer, {name: value[rows] for name, value in of_files.items()})
        differences["serving_bytes"] = max(differences["serving_bytes"], found)
    return differences


def _check_names(found: Mapping[str, Sequence[str]], detected: bool) -> None:
    for name in OUTPUTS:
        wanted = outputs(name, detected)
        if set(wanted) - set(found.get(name, ())):
            raise VerificationError(
                f"The signature {name!r} must give {', '.join(wanted)}. Received: {found.get(name)}"
            )


def _compare(
    name: str,
    answer: Mapping[str, tf.Tensor],
    expected: Mapping[str, np.ndarray],
    labels: Sequence[str],
    allowed: float,
    detector: FittedDetector | None,
) -> float:
    """The largest difference; raises if it is too large, or if the other outputs do not match the probabilities."""
    values = {key: value.numpy() for key, value in answer.items()}
    largest = 0.0
    for key, wanted in expected.items():
        if key == SUSPICIOUS:
            continue
        if values[key].shape != wanted.shape:
            raise VerificationError(f"{name!r} must give {key} of shape {wanted.shape}. Received: {values[key].shape}")
        unit, most = (float(detector.spread), _OF_SCORES * allowed) if detector and key == SCORE else (1, allowed)
        difference = np.abs(values[key] - wanted) / np.maximum(unit, np.abs(wanted))
        # This also refuses NaN.
        if not (difference <= most).all():
            raise VerificationError(
                f"{key} of {name!r} may differ by at most {most:g} from the model's. Received: {difference.max():g}"
            )
        if key != SCORE:
            largest = max(largest, float(difference.max(initial=0)))
    if "probabilities" in values:
        valid = expected["probabilities"].any(-1)
        class_id = np.where(valid, values["probabilities"].argmax(-1), -1)
        named = [labels[index].encode() if index >= 0 else b"" for index in class_id]
        follows = (values["valid"] == valid).all() and (values["class_id"] == class_id).all()
        if not follows or values["label"].tolist() != named:
            raise VerificationError(
                f"valid, class_id and label of {name!r} do not match its probabilities. Received: {values['valid']}, "
                f"{values['class_id']}, {values['label']}"
            )
    elif not values["valid"].all():
        raise VerificationError(f"{name!r} marked a valid sample as invalid. Received: {values['valid']}")
    if detector is not None:
        suspicious = values["valid"] & (values[SCORE] > float(detector.threshold))
        if (values[SUSPICIOUS] != suspicious).any():
            raise VerificationError(f"{SUSPICIOUS} of {name!r} contradicts its score. Received: {values[SUSPICIOUS]}")
    return largest


def _png(image: np.ndarray) -> bytes:
    return tf.io.encode_png(_levels(image)).numpy()


def _jpeg(image: np.ndarray) -> tuple[bytes, np.ndarray]:
    """A file two and a half times the served size, and the pixels that training would read from it."""
    height, width, _ = image.shape
    larger = tf.image.resize(image, [5 * height // 2, 5 * width // 2])
    contents = tf.io.encode_jpeg(_levels(larger), quality=90).numpy()
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(contents)
        file.flush()
        return contents, decoding.decode(tf.constant(file.name), (height, width)).numpy() / np.float32(255)


def _levels(image: np.ndarray | tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(image * 255.0), tf.uint8)


def newer_operations(folder: str | Path) -> list[str]:
    """The operations of a SavedModel, or attributes of them, that TensorFlow 2.15 does not know.

    `tf_2_15_ops.txt` next to this file has a line for each operation of TensorFlow 2.15.1, with its name and
    attributes, as returned by `TF_GetAllOpList` of its wheel; those for TPUs, XLA and MKL are left out. An unknown
    attribute is returned as `Operation.attribute`.
    """
    saved = saved_model_pb2.SavedModel.FromString((Path(folder) / "saved_model.pb").read_bytes())
    known = _known_operations()
    newer = set()
    for meta_graph in saved.meta_graphs:
        graph = meta_graph.graph_def
        functions = {function.signature.name for function in graph.library.function}
        for node in [*graph.node, *(node for function in graph.library.function for node in function.node_def)]:
            if node.op in functions:
                continue
            if node.op not in known:
                newer.add(node.op)
                continue
            # Attributes that start with an underscore are annotations, which every version ignores.
            unknown = {name for name in node.attr if not name.startswith("_")} - known[node.op]
            newer |= {f"{node.op}.{name}" for name in unknown}
    return sorted(newer)


@functools.cache
def _known_operations() -> dict[str, frozenset[str]]:
    text = (resources.files("satm_tf.serving") / "tf_2_15_ops.txt").read_text()
    return {name: frozenset(attributes) for name, *attributes in map(str.split, text.splitlines())}
