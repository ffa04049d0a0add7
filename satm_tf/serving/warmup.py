"""Requests that TensorFlow Serving sends to a model when it loads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

FILE = "tf_serving_warmup_requests"


def write_warmup(folder: str | Path, model: str, requests: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> Path:
    """Writes warm-up requests into `<folder>/assets.extra/`, where TensorFlow Serving looks for them.

    A request is a signature and its inputs by name; the server takes at most 1,000. Returns the file, a TFRecord of
    `PredictionLog`s.

    Source:
        https://www.tensorflow.org/tfx/serving/saved_model_warmup
    """
    path = Path(folder) / "assets.extra" / FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            writer.write(_prediction_log(model, signature, inputs))
    return path


def _prediction_log(model: str, signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    # The protos are in a package that an export does not need otherwise; four fields are enough, by their numbers in
    # prediction_log.proto, predict.proto and model.proto. The tests read the file with the official protos.
    specification = _field(1, model.encode()) + _field(3, signature.encode())
    request = _field(1, specification)
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))
    return _field(6, _field(1, request))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field on the wire: its number and type (2), its length as a varint, its content."""
    length, varint = len(content), b""
    while length > 0x7F:
        varint += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + varint + bytes([length]) + content
