"""A test double of TensorFlow Serving: its gRPC PredictionService and REST surface around `tf.saved_model.load`.

It is no part of TensorFlow Serving and shares no code with it; it speaks the official protos, and REST in the row and
column formats as https://www.tensorflow.org/tfx/serving/api_rest describes them. Like the server it polls the folder of
each model, loads the highest version, and releases the one before when no request uses it any more.

    python server_double.py FOLDER

prints the two ports, gRPC's and REST's, on one line. It imports neither satm_tf nor keras.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.modules.update(keras=None, satm_tf=None)  # an attempt to import either fails

import grpc  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # noqa: E402


class NotFoundError(LookupError):
    pass


class Models:
    def __init__(self, root: Path):
        self.root, self.loaded, self.asked = root, {}, 0
        self.counting = threading.Lock()
        self.poll()
        threading.Thread(target=self.keep_polling, daemon=True).start()

    def poll(self):
        for folder in self.root.iterdir():
            versions = [int(path.name) for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
            if versions and max(versions) != self.loaded.get(folder.name, (0,))[0]:
                # Available versions are replaced by an assignment: requests under way keep the old one alive.
                self.loaded[folder.name] = max(versions), tf.saved_model.load(str(folder / str(max(versions))))

    def count(self):
        with self.counting:
            self.asked += 1

    def keep_polling(self):
        while True:
            time.sleep(0.05)
            self.poll()

    def run(self, name, version, signature, inputs):
        if name not in self.loaded or version not in (None, self.loaded[name][0]):
            raise NotFoundError(
                f"Servable not found for request: {'Latest' if version is None else 'Specific'}({name})"
            )
        number, model = self.loaded[name]
        if signature not in model.signatures:
            raise ValueError(f'Serving signature name: "{signature}" not found in signature def')
        function = model.signatures[signature]
        specs = function.structured_input_signature[1]
        if set(specs) != set(inputs):
            raise ValueError(f"inputs of {signature!r} are {sorted(specs)}")
        tensors = {key: tf.constant(value, specs[key].dtype) for key, value in inputs.items()}
        return number, {key: value.numpy() for key, value in function(**tensors).items()}


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models):
        self.models = models

    def Predict(self, request, context):  # noqa: N802
        self.models.count()
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        try:
            number, outputs = self.models.run(spec.name, version, spec.signature_name or "serving_default", inputs)
        except NotFoundError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = predict_pb2.PredictResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = number
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


def decoded(value):
    """JSON as tensors: `{"b64": ...}` is a string of bytes, at any depth."""
    if isinstance(value, dict):
        return base64.b64decode(value["b64"], validate=True)
    return [decoded(item) for item in value] if isinstance(value, list) else value


def as_json(array):
    return [item.decode() for item in array] if array.dtype == object else array.tolist()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    models: Models
    broken = 0
    """How many more requests are refused or broken off, one after the other."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/break/"):  # not of the real server: the tests ask for trouble here
            Handler.broken = int(self.path.rsplit("/", 1)[1])
            self.answer(200, {})
            return
        if self.path == "/count":  # nor this: how many predictions both interfaces were asked for
            self.answer(200, {"asked": self.models.asked})
            return
        self.models.count()
        if Handler.broken:
            Handler.broken -= 1
            if Handler.broken % 2:
                self.answer(503, {"error": "busy"})
            else:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.predict(body)

    def predict(self, body):
        match = re.fullmatch(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict", self.path)
        if not match:
            self.answer(404, {"error": f"Malformed request: POST {self.path}"})
            return
        try:
            request = json.loads(body)
            rows = "instances" in request
            signature = request.get("signature_name", "serving_default")
            version = int(match[2]) if match[2] else None
            inputs = self.from_rows(match[1], signature, request["instances"]) if rows else request["inputs"]
            inputs = {name: np.asarray(decoded(value), self.kind(name)) for name, value in inputs.items()}
            _, outputs = self.models.run(match[1], version, signature, inputs)
        except NotFoundError as error:
            self.answer(404, {"error": str(error)})
        except (KeyError, TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            self.answer(400, {"error": str(error)})
        else:
            outputs = {name: as_json(value) for name, value in outputs.items()}
            listed = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
            self.answer(200, {"predictions": listed} if rows else {"outputs": outputs})

    @staticmethod
    def kind(name):
        return object if name.endswith("_bytes") else np.float32

    def from_rows(self, name, signature, instances):
        """Rows may leave out the name of an only input."""
        _, model = self.models.loaded[name]
        (only,) = model.signatures[signature].structured_input_signature[1]
        named = [row[only] if isinstance(row, dict) and only in row else row for row in instances]
        return {only: named}

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class RestServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main():
    Handler.models = Models(Path(sys.argv[1]))
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(Handler.models), server)
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    rest = RestServer(("127.0.0.1", 0), Handler)
    print(grpc_port, rest.server_port, flush=True)
    rest.serve_forever()


if __name__ == "__main__":
    main()
