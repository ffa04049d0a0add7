"""How a question reaches a model: REST, gRPC, or a folder on this disk. Each is a function of signature and inputs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow as tf
from urllib3.util import Retry

from satm_tf.configurable import look_up
from satm_tf.models.runtimes import loading, newest_version

Ask = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""A signature and its inputs by name, in; its outputs by name, out."""

_BUSY = (429, 502, 503, 504)
_FIRST_WAIT = 0.2


class ServingError(RuntimeError):
    """A server that cannot be reached, or that refuses."""


class RestTransport:
    """The REST interface of TensorFlow Serving, in its column format.

    Args:
        host: `host:port`, or a URL.
        model: Name of the model.
        version: Its version; None for the newest.
        timeout: Seconds for one attempt.
        retries: How many more attempts.

    Source:
        https://www.tensorflow.org/tfx/serving/api_rest
    """

    def __init__(self, host: str, model: str, *, version: int | None, timeout: float, retries: int):
        base = host if "://" in host else f"http://{host}"
        at = "" if version is None else f"/versions/{version}"
        self._url = f"{base.rstrip('/')}/v1/models/{model}{at}:predict"
        self._timeout, self._retries = timeout, retries
        self._session = requests.Session()
        # A prediction changes nothing, so that a POST may be sent twice.
        policy = Retry(
            retries, backoff_factor=_FIRST_WAIT, status_forcelist=_BUSY, allowed_methods=None, raise_on_status=False
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=policy, pool_maxsize=64))

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Sends one request; raises `ServingError`."""
        try:
            body = json.dumps(
                {"signature_name": signature, "inputs": {name: _as_json(value) for name, value in inputs.items()}},
                allow_nan=False,
            )
        except ValueError as error:
            raise ValueError("JSON has no word for NaN and infinity: send such pixels over gRPC.") from error
        try:
            response = self._session.post(
                self._url, data=body, timeout=self._timeout, headers={"Content-Type": "application/json"}
            )
        except requests.RequestException as error:
            raise ServingError(
                f"No answer from {self._url} within {self._timeout:g} s and {self._retries} more attempts. "
                f"Received: {error}"
            ) from error
        answer = _json(response)
        if response.status_code != 200 or "outputs" not in answer:
            message = answer.get("error", response.text[:500])
            raise ServingError(f"{self._url} refused, with status {response.status_code}. Received: {message}")
        return {name: np.asarray(value) for name, value in answer["outputs"].items()}


def _as_json(value: np.ndarray) -> list[Any]:
    if value.dtype == object:
        return [{"b64": base64.b64encode(contents).decode()} for contents in value]
    return value.tolist()


def _json(response: requests.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except requests.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


class GrpcTransport:
    """The gRPC interface of TensorFlow Serving, with its own protos from `tensorflow-serving-api`.

    Args:
        host: `host:port`.
        model: Name of the model.
        version: Its version; None for the newest.
        timeout: Seconds for all attempts together, as gRPC counts.
        retries: How many more attempts, at most four.

    Source:
        https://github.com/tensorflow/serving, apis/prediction_service.proto; https://grpc.io/docs/guides/retry
    """

    def __init__(self, host: str, model: str, *, version: int | None, timeout: float, retries: int):
        try:
            import grpc
            from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
        except ImportError as error:
            raise ImportError(
                'gRPC needs the extra `client`: pip install "satm_tf[client]"; beside tensorflow-cpu, '
                "pip install grpcio, and tensorflow-serving-api with --no-deps."
            ) from error
        method = {
            "name": [{"service": "tensorflow.serving.PredictionService"}],
            "retryPolicy": {
                "maxAttempts": min(retries, 4) + 1,
                "initialBackoff": f"{_FIRST_WAIT}s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
        if retries < 1:
            del method["retryPolicy"]
        options = {
            "grpc.service_config": json.dumps({"methodConfig": [method]}),
            # The default, 4 MB, is six images of 224 x 224.
            "grpc.max_receive_message_length": -1,
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
            raise ServingError(
                f"Model {self._model!r} at {self._host} did not answer: {error.code().name}. "
                f"Received: {error.details()}"
            ) from error
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def local(folder: str | Path) -> Ask:
    """An export on this disk, loaded.

    Args:
        folder: The folder of a version, or of a model, whose newest version is taken.

    Raises:
        FileNotFoundError: If there is no export.
        ValueError: If it is damaged.
    """
    version = newest_version(folder)
    if version is None:
        raise FileNotFoundError(
            f"An export is a folder with a saved_model.pb, or a folder of numbered versions of one. Received: {folder}"
        )
    with loading(version):
        # The signatures live as long as what was loaded.
        loaded: Any = tf.saved_model.load(str(version))

    def ask(signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        function = look_up("signature", signature, loaded.signatures)
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in function(**tensors).items()}

    return ask
