"""How a request reaches a model: REST, gRPC, or a local folder. Each is a function of signature and inputs."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import tensorflow as tf

from satm_tf.configurable import look_up
from satm_tf.models.runtimes import loading, newest_version
from satm_tf.serving import answers
from satm_tf.serving.answers import ServingError, UnavailableError
from satm_tf.serving.post import Answer, TooLargeError, post

Ask = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""A function from a signature and its inputs by name to its outputs by name."""

_BUSY = (429, 502, 503, 504)
_GRPC_BUSY = ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
_FIRST_WAIT = 0.2
# The most bytes of an answer, and of its share for each image, enough for thousands of numbers.
_ANSWER, _ANSWER_OF_AN_IMAGE = 2**20, 2**18
_GRPC_ANSWER = 2**26


class RestTransport:
    """The REST interface of TensorFlow Serving, in its column format.

    If a connection breaks, even in the middle of an answer, or a server is busy, the request is repeated while time is
    left, because a prediction has no side effects. Redirects are not followed, because they would send the images to
    another host.

    The arguments are those of `Client`.

    Source:
        https://www.tensorflow.org/tfx/serving/api_rest
    """

    def __init__(self, host: str, model: str, *, version: int | None, timeout: float, retries: int):
        base = host if "://" in host else f"http://{host}"
        parts = urlsplit(base)
        try:
            known = parts.scheme in ("http", "https") and (parts.hostname or "").encode("idna") and parts.port != 0
        except ValueError:  # an invalid port or host name
            known = False
        if not known or "@" in parts.netloc or parts.query or parts.fragment or not re.fullmatch("[!-~]*", parts.path):
            raise ValueError(
                "A host must be host:port, or an http:// or https:// address, without a user name or a query. "
                f"Received: {host!r}"
            )
        at = "" if version is None else f"/versions/{version}"
        self._url = f"{base.rstrip('/')}/v1/models/{quote(model, safe='')}{at}:predict"
        self._timeout, self._retries = timeout, retries

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Sends one request; raises `ServingError`."""
        try:
            body = json.dumps(
                {"signature_name": signature, "inputs": {name: _as_json(value) for name, value in inputs.items()}},
                allow_nan=False,
            )
        except ValueError as error:
            raise ValueError("JSON cannot represent NaN and infinity: send such pixels over gRPC.") from error
        limit = _ANSWER + sum(map(len, inputs.values())) * _ANSWER_OF_AN_IMAGE
        response = self._ask(body.encode(), limit)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity" or 300 <= response.status < 400:
            received = answers.shown(response.headers.get("Location", encoding))
            raise ServingError(
                f"{self._url} must answer directly and uncompressed: if it redirects to an address that you trust, "
                f"give that address. Received: status {response.status}, {received}"
            )
        answer = answers.from_json(response.body)
        if response.status != 200 or "outputs" not in answer:
            message = answers.shown(answer.get("error", response.body), 500)
            raise ServingError(f"{self._url} refused the request, with status {response.status}. Received: {message}")
        return answers.from_lists(answer["outputs"])

    def _ask(self, body: bytes, limit: int) -> Answer:
        began = time.monotonic()
        for attempt in range(1, self._retries + 2):
            wait = _FIRST_WAIT * 2 ** (attempt - 1)
            cause: Exception | None = None
            try:
                response = post(self._url, body, deadline=began + self._timeout, limit=limit)
            except TooLargeError as error:
                raise ServingError(f"The answer of {self._url} has more than {limit} bytes.") from error
            except (OSError, HTTPException) as error:
                received, cause = f"{type(error).__name__}: {answers.shown(str(error))}", error
            else:
                if response.status not in _BUSY:
                    return response
                asked = response.headers.get("Retry-After", "")
                wait = max(wait, float(asked)) if asked.isdecimal() else wait
                received = f"status {response.status}, {answers.shown(response.body)}"
                if asked:
                    received += f" (Retry-After: {answers.shown(asked, 40)})"
            left = began + self._timeout - time.monotonic()
            if attempt > self._retries or wait >= left:
                break
            time.sleep(wait)
        message = (
            f"No answer from {self._url} within {self._timeout:g} s, in {attempt} of at most {self._retries + 1} "
            f"attempts. Received: {received}"
        )
        raise (ServingError(message) if isinstance(cause, TimeoutError) else UnavailableError(message, wait)) from cause


def _as_json(value: np.ndarray) -> list[Any]:
    if value.dtype == object:
        return [{"b64": base64.b64encode(contents).decode()} for contents in value]
    return value.tolist()


class GrpcTransport:
    """The gRPC interface of TensorFlow Serving, with its own protos from `tensorflow-serving-api`.

    The arguments are those of `Client`; gRPC itself counts the time, and makes at most four further attempts.

    Source:
        https://github.com/tensorflow/serving, apis/prediction_service.proto; https://grpc.io/docs/guides/retry
    """

    def __init__(self, host: str, model: str, *, version: int | None, timeout: float, retries: int):
        try:
            import grpc
            from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
        except ImportError as error:
            raise ImportError(
                'gRPC needs the extra `client`: pip install "satm_tf[client]"; with tensorflow-cpu, '
                "pip install grpcio, and tensorflow-serving-api with --no-deps."
            ) from error
        method = {
            "name": [{"service": "tensorflow.serving.PredictionService"}],
            "retryPolicy": {
                "maxAttempts": min(retries, 4) + 1,
                "initialBackoff": f"{_FIRST_WAIT}s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": _GRPC_BUSY,
            },
        }
        if retries < 1:
            del method["retryPolicy"]
        options = {
            # Otherwise the channel would resend requests that it considers unseen by the server.
            "grpc.enable_retries": int(retries > 0),
            "grpc.service_config": json.dumps({"methodConfig": [method]}),
            "grpc.max_receive_message_length": _GRPC_ANSWER,
            # The default, 4 MB, holds six images of 224 x 224.
            "grpc.max_send_message_length": -1,
        }
        self._grpc, self._request = grpc, predict_pb2.PredictRequest
        self._host, self._model, self._version, self._timeout = host, model, version, timeout
        self._channel = grpc.insecure_channel(host, options=list(options.items()))
        self._service = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Sends one request; raises `ServingError`."""
        request = self._request()
        request.model_spec.name = self._model
        request.model_spec.signature_name = signature
        if self._version is not None:
            request.model_spec.version.value = self._version
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        try:
            response = self._service.Predict(request, timeout=self._timeout)
        except self._grpc.RpcError as error:
            code = error.code().name
            message = f"Model {self._model!r} at {self._host} did not answer: {code}. Received: {error.details()}"
            raise (UnavailableError(message, _FIRST_WAIT) if code in _GRPC_BUSY else ServingError(message)) from error
        return {name: _from_proto(name, value) for name, value in response.outputs.items()}


def _from_proto(name: str, value: Any) -> np.ndarray:
    shape = [dimension.size for dimension in value.tensor_shape.dim]
    # A proto with one number may claim any shape, and the number is then repeated.
    if any(size < 0 for size in shape) or math.prod(shape) > _GRPC_ANSWER // 4:
        raise ServingError(f"{name} is larger than a model's answer can be. Received: {shape}")
    try:
        return tf.make_ndarray(value)
    except (TypeError, ValueError, KeyError) as error:
        raise ServingError(f"{name} is not a readable tensor ({error}). Received: {shape}") from error


def local(folder: str | Path) -> Ask:
    """An export on disk, loaded: the folder of a version, or of a model, whose newest version is taken.

    Raises:
        FileNotFoundError: If there is no export.
        ValueError: If it is damaged.
    """
    version = newest_version(folder)
    if version is None:
        raise FileNotFoundError(
            f"An export must be a folder with a saved_model.pb, or a folder of numbered versions. Received: {folder}"
        )
    with loading(version):
        # The signatures live as long as the loaded object.
        loaded: Any = tf.saved_model.load(str(version))

    def ask(signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        function = look_up("signature", signature, loaded.signatures)
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in function(**tensors).items()}

    return ask
