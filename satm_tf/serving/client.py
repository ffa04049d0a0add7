"""A client that queries a server, or an export on disk, and returns a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.configurable import look_up
from satm_tf.serving import answers
from satm_tf.serving.answers import ServingError
from satm_tf.serving.signatures import DETECTED, INPUTS, OUTPUTS
from satm_tf.serving.transports import Ask, GrpcTransport, RestTransport, local

SCORE, SUSPICIOUS = DETECTED
_DAY = 24 * 60 * 60
_TRANSPORTS: dict[str, Callable[..., Ask]] = {"rest": RestTransport, "grpc": GrpcTransport}


class Client:
    """Queries a model with images: on a TensorFlow Serving server, or in an export folder.

    It may be used from several threads at once.

    Args:
        host: `host:port` of the server; REST is usually on port 8501, gRPC on 8500. A REST host may start with
            `https://` and end with a path.
        model: Name of the model.
        transport: "rest" or "grpc"; the latter needs the extra `client`, `pip install "satm_tf[client]"`.
        version: Version of the model; None takes the newest that the server has loaded.
        timeout: Seconds for a request of at most `batch_size` images: all attempts, the waits between them, and the
            whole answer; only the look-up of the host's name can take longer. At most a day.
        retries: Number of further attempts if the server cannot be reached, breaks off the connection, or is too busy.
            The wait doubles before each one. Any other failure is an error immediately.
        batch_size: Maximum number of images in one request.

    Raises:
        ValueError: If the transport is unknown, or a number out of range.
        ImportError: If the transport is "grpc" and the extra is missing.

    Example:
        >>> client = Client("localhost:8501", "compact_vgg")
        >>> client.predict(["a.jpg", "b.png"])[["label", "probability"]]
    """

    def __init__(
        self,
        host: str,
        model: str,
        *,
        transport: str = "rest",
        version: int | None = None,
        timeout: float = 10.0,
        retries: int = 3,
        batch_size: int = 32,
    ):
        make = look_up("transport", transport, _TRANSPORTS)
        if not 0 < timeout <= _DAY or retries < 0 or batch_size < 1:
            raise ValueError(
                "timeout and batch_size must be positive, retries not negative, and timeout at most a day. "
                f"Received: timeout={timeout}, batch_size={batch_size}, retries={retries}"
            )
        self._ask = make(host, model, version=version, timeout=timeout, retries=retries)
        self.batch_size = batch_size

    @classmethod
    def from_folder(cls, folder: str | Path, *, batch_size: int = 32) -> Client:
        """Creates a client of an export on disk, which answers as a server would.

        Args:
            folder: The folder of a version, or of a model, whose newest version is taken.
            batch_size: Maximum number of images in a batch.

        Raises:
            FileNotFoundError: If there is no export.

        Example:
            >>> Client.from_folder("exported_models/compact_vgg").predict(["a.jpg"])
        """
        client = cls.__new__(cls)
        client._ask, client.batch_size = local(folder), batch_size
        return client

    def predict(self, images: np.ndarray | Sequence[str | Path | bytes]) -> pd.DataFrame:
        """Classifies images.

        Args:
            images: Floats `[images, height, width, 3]` in [0, 1] of the size that the model takes; or JPEG and PNG
                files of any size, each as a path or as bytes.

        Returns:
            A row for each image, in order: `file` (the path; only if there are paths), `valid` (whether it was an
            image; if not, the rest is empty), `label`, `class_id`, `probability` (of that class), and
            `probability_0` and so on, one for each class; for a model with a detector also `adversarial_score` and
            `suspicious`. For no images, a frame without rows.

        Raises:
            ValueError: If the images are of the wrong kind or shape, or hold NaN or infinity and go over REST.
            FileNotFoundError: If a file does not exist.
            ServingError: If the server cannot be reached, refuses, or sends an invalid answer.
        """
        signature, images = _request(images)
        found = self._in_batches(signature, images)
        frame = pd.DataFrame(index=range(len(images)))
        if any(isinstance(image, str | Path) for image in images):
            frame["file"] = ["" if isinstance(image, bytes) else str(image) for image in images]
        frame["valid"] = found["valid"].astype(bool)
        frame["label"] = found["label"].astype(object)
        frame["class_id"] = found["class_id"].astype("int64")
        probabilities = np.asarray(found["probabilities"], np.float32)
        frame["probability"] = probabilities.max(-1, initial=0) if len(images) else np.zeros(0, np.float32)
        if len(images):
            columns = [f"probability_{index}" for index in range(probabilities.shape[-1])]
            frame = frame.join(pd.DataFrame(probabilities, columns=columns))
        if SCORE in found:
            frame[SCORE] = np.where(frame.valid, found[SCORE], np.nan).astype(np.float32)
            frame[SUSPICIOUS] = found[SUSPICIOUS].astype(bool)
        frame.loc[~frame.valid, [column for column in frame if column.startswith("probability")]] = np.nan
        return frame

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features of images: float32 `[images, feature_size]`; rows of NaN where an image was not valid.

        Args:
            images: As for `predict`, but not files.

        Raises:
            ValueError: If the images are files, or as for `predict`.
            ServingError: As for `predict`.
        """
        signature, images = _request(images)
        if signature != "serving_default":
            raise ValueError("Features need arrays of images; decode files first. Received: files")
        found = self._in_batches("features", images)
        features = np.array(found["features"], np.float32)
        features[~found["valid"].astype(bool)] = np.nan
        return features

    def _in_batches(self, signature: str, images: Any) -> dict[str, np.ndarray]:
        """The outputs of all images, by name. Files are read batch by batch."""
        if not len(images):
            return dict.fromkeys(OUTPUTS[signature], np.zeros(0))
        found: list[dict[str, np.ndarray]] = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            answer = self._ask(signature, {INPUTS[signature]: batch if isinstance(batch, np.ndarray) else _read(batch)})
            found.append(answers.check(signature, answer, len(batch)))
            widths = {value.shape[1] for each in found for value in each.values() if value.ndim == 2}
            if len(widths) > 1 or set(found[-1]) != set(found[0]):
                raise ServingError(
                    "The answers to two requests must come from the same model; was another version loaded between "
                    f"them? Received: {' and '.join(map(str, sorted(widths)))} columns, of {', '.join(found[-1])}"
                )
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def _request(images: Any) -> tuple[str, Any]:
    """The signature that takes these images, and the images: an array, or a list of paths and bytes."""
    if isinstance(images, np.ndarray | tf.Tensor):
        array = np.asarray(images)
        if array.ndim != 4 or array.dtype.kind != "f":
            raise ValueError(
                f"Images must be floats in [0, 1] of shape [images, height, width, 3]. Received: {array.dtype} "
                f"{list(array.shape)}"
            )
        return "serving_default", array.astype(np.float32)
    if isinstance(images, str | Path | bytes):
        raise ValueError(f"Files must be in a list, even if there is only one. Received: {type(images).__name__}")
    files = list(images)
    missing = [str(file) for file in files if not isinstance(file, bytes) and not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(f"No such file: {', '.join(missing)}")
    return "serving_bytes", files


def _read(files: Sequence[str | Path | bytes]) -> np.ndarray:
    contents = np.empty(len(files), object)
    contents[:] = [file if isinstance(file, bytes) else Path(file).read_bytes() for file in files]
    return contents
