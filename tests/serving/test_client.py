import base64
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow as tf

from satm_tf.serving import Client, ServingError, export_saved_model

from .conftest import LABELS, build_network

grpc = pytest.importorskip("grpc", reason="needs the client extra")
pytest.importorskip("tensorflow_serving", reason="needs the client extra")
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # noqa: E402


@pytest.fixture
def images(pixels):
    return pixels / np.float32(255)


@pytest.fixture
def files(pixels, encode, tmp_path):
    """Six PNGs; between them a text."""
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for path, image in zip(paths, pixels, strict=True):
        path.write_bytes(encode(image))
    (tmp_path / "notes.txt").write_text("no image")
    return [*paths[:2], tmp_path / "notes.txt", *paths[2:]]


@pytest.mark.parametrize("transport", ["rest", "grpc"])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_arrays(server, exported, images, transport, batch_size):
    frame = server.client(transport, batch_size=batch_size).predict(images)
    expected = exported.probabilities(images)
    np.testing.assert_allclose(frame[[f"probability_{index}" for index in range(4)]], expected, rtol=0, atol=1e-5)
    assert frame.class_id.tolist() == expected.argmax(-1).tolist()
    assert frame.label.tolist() == [LABELS[index] for index in expected.argmax(-1)]
    np.testing.assert_allclose(frame.probability, expected.max(-1), atol=1e-5)
    assert frame.valid.all()
    assert "file" not in frame


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_files(server, exported, files, images, transport):
    frame = server.client(transport).predict(files)
    assert frame.file.tolist() == [str(path) for path in files]
    assert frame.valid.tolist() == [True, True, False, True, True, True, True]
    bad, good = frame[~frame.valid].iloc[0], frame[frame.valid]
    assert (bad.label, bad.class_id) == ("", -1)
    assert np.isnan(bad.probability)
    assert np.isnan(bad.probability_0)
    np.testing.assert_allclose(good.probability, exported.probabilities(images).max(-1), atol=1e-5)


def test_a_folder_answers_as_its_server_does(server, exported, files, images):
    answers = [client.predict(files) for client in (server.client("rest"), Client.from_folder(exported.folder.parent))]
    np.testing.assert_allclose(*(answer.filter(like="probability") for answer in answers), atol=1e-6)
    assert (
        answers[0]
        .drop(columns=answers[0].filter(like="probability"))
        .equals(answers[1].drop(columns=answers[1].filter(like="probability")))
    )


def test_a_detectors_answers_are_columns(detected, detector, exported, files, images):
    client = Client.from_folder(detected.folder, batch_size=3)
    frame = client.predict(files)
    good, bad = frame[frame.valid], frame[~frame.valid].iloc[0]
    np.testing.assert_allclose(good.adversarial_score, detector.score(exported.network, images), atol=1e-5)
    assert good.suspicious.tolist() == (good.adversarial_score > float(detector.threshold)).tolist()
    assert np.isnan(bad.adversarial_score)
    assert not bad.suspicious
    assert client.features(images).shape == (6, exported.network.feature_size)
    answers = iter([client._ask, Client.from_folder(exported.folder)._ask])
    client._ask = lambda *asked: next(answers)(*asked)
    with pytest.raises(ServingError, match="another version loaded between"):
        client.predict(images)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_features(server, exported, images, transport):
    features = server.client(transport, batch_size=4).features(images)
    np.testing.assert_allclose(features, exported.network.features(tf.constant(images)), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="decode files first"):
        server.client(transport).features([b"x"])


def test_nan_goes_over_grpc_and_not_into_json(server, images):
    images = images.copy()
    images[2, 1, 1] = np.nan
    assert server.client("grpc").predict(images).valid.tolist() == [True, True, False, True, True, True]
    with pytest.raises(ValueError, match="over gRPC"):
        server.client("rest").predict(images)


def test_nothing_to_ask(server):
    frame = server.client("rest").predict([])
    assert list(frame) == ["valid", "label", "class_id", "probability"]
    assert frame.empty


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros([16, 16, 3], np.float32), r"Received: float32 \[16, 16, 3\]"),
        (np.zeros([1, 16, 16, 3], np.uint8), r"Received: uint8"),
        ("a.jpg", "a list"),
    ],
)
def test_other_things_than_images_are_refused(server, images, message):
    with pytest.raises(ValueError, match=message):
        server.client("rest").predict(images)


def test_what_the_server_refuses_is_an_error(server, images):
    for transport in ("rest", "grpc"):
        with pytest.raises(ServingError, match="Servable not found"):
            Client(getattr(server, transport), "nobody", transport=transport).predict(images)
        with pytest.raises(ServingError, match="Specific"):
            server.client(transport, version=77).predict(images)
        with pytest.raises(ServingError, match="shape"):
            server.client(transport).predict(np.zeros([1, 8, 8, 3], np.float32))


def test_a_busy_server_is_asked_again(server, images):
    server.fail(3)
    assert server.client("rest", retries=3).predict(images).valid.all()
    server.fail(2)
    with pytest.raises(ServingError, match="status 503"):
        server.client("rest", retries=0).predict(images)
    server.fail(0)


class Busy(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Refuses with each of some codes, then answers."""

    def __init__(self, *codes):
        self.codes = list(codes)

    def Predict(self, request, context):  # noqa: N802
        if self.codes:
            context.abort(self.codes.pop(0), "busy")
        response = predict_pb2.PredictResponse()
        for name, value in {"valid": [True], "label": [b"a"], "class_id": [0], "probabilities": [[1.0]]}.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


@pytest.mark.parametrize(
    ("codes", "retries", "answered"),
    [
        (["UNAVAILABLE", "RESOURCE_EXHAUSTED"], 2, True),
        (["UNAVAILABLE", "UNAVAILABLE"], 1, False),
        (["UNAVAILABLE"], 0, False),
        (["INVALID_ARGUMENT"], 3, False),
    ],
)
def test_grpc_is_tried_again_only_where_that_helps(images, codes, retries, answered):
    service = grpc.server(ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Busy(*(grpc.StatusCode[code] for code in codes)), service
    )
    port = service.add_insecure_port("127.0.0.1:0")
    service.start()
    client = Client(f"127.0.0.1:{port}", "faces", transport="grpc", retries=retries)
    if answered:
        assert client.predict(images[:1]).label.tolist() == ["a"]
    else:
        with pytest.raises(ServingError, match=f"{codes[-1]}. Received: busy"):
            client.predict(images[:1])
    service.stop(None)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_no_server_there(images, transport):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServingError, match=r"No answer|UNAVAILABLE"):
        Client(host, "faces", transport=transport, timeout=2, retries=1).predict(images)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_server_that_never_answers(images, transport):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(ServingError, match=r"within 0.3 s|DEADLINE_EXCEEDED|UNAVAILABLE"):
            Client(
                f"127.0.0.1:{silent.getsockname()[1]}", "faces", transport=transport, timeout=0.3, retries=1
            ).predict(images)
        assert time.monotonic() - began < 5


def test_a_model_that_is_not_ours_is_an_error(images, tmp_path):
    module = tf.Module()
    module.serve = tf.function(
        lambda images: {"scores": images[:, 0, 0]}, input_signature=[tf.TensorSpec([None, 16, 16, 3], name="images")]
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.serve})
    client = Client.from_folder(tmp_path)
    with pytest.raises(ServingError, match=r"lacks class_id, label, probabilities, valid\. Received: scores"):
        client.predict(images)
    with pytest.raises(ValueError, match="Unknown signature"):
        client.features(images)


def test_missing_files_are_named_before_anything_is_asked(files):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png, nor\.png"):
        Client("localhost:1", "faces").predict([files[0], "nowhere.png", Path("nor.png")])


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": 86_401}, {"timeout": float("nan")}, {"retries": -1}, {"batch_size": 0}]
)
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        Client("localhost:1", "faces", **options)


def test_an_unknown_transport():
    with pytest.raises(ValueError, match="Did you mean 'grpc'"):
        Client("localhost:8500", "faces", transport="gprc")


def test_rest_as_others_speak_it(server, exported, pixels, images, encode):
    """Rows with and without the name of the input, and columns, as any client may send them."""
    url = f"http://{server.rest}/v1/models/faces/versions/1:predict"
    encoded = [{"b64": base64.b64encode(encode(image)).decode()} for image in pixels]
    expected = exported.probabilities(images)
    for body, answer in [
        ({"signature_name": "serving_bytes", "instances": encoded}, "predictions"),
        ({"signature_name": "serving_bytes", "instances": [{"image_bytes": file} for file in encoded]}, "predictions"),
        ({"signature_name": "serving_bytes", "inputs": {"image_bytes": encoded}}, "outputs"),
        ({"instances": images.tolist()}, "predictions"),
        ({"inputs": {"images": images.tolist()}}, "outputs"),
    ]:
        content = requests.post(url, data=json.dumps(body), timeout=10).json()[answer]
        given = [row["probabilities"] for row in content] if answer == "predictions" else content["probabilities"]
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)
        labels = [row["label"] for row in content] if answer == "predictions" else content["label"]
        assert labels == [LABELS[index] for index in expected.argmax(-1)]


def test_grpc_as_others_speak_it(server, exported, images):
    """The official stub and messages, with nothing of ours between."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "faces"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    with grpc.insecure_channel(server.grpc) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=10)
    assert set(response.outputs) == {"probabilities", "class_id", "label", "valid"}
    probabilities = tf.make_ndarray(response.outputs["probabilities"])
    np.testing.assert_allclose(probabilities, exported.probabilities(images), rtol=0, atol=1e-5)


def test_a_new_version_appears_while_sixteen_clients_ask(server, exported, images):
    """None of their requests is lost, each is answered by one version as a whole, and the new one takes over."""
    successor = build_network(seed=1)
    answers = {"old": exported.probabilities(images)}
    answers["new"] = type(exported)(successor, exported.folder).probabilities(images)
    assert np.abs(answers["old"] - answers["new"]).max() > 0.1
    over, clients = threading.Event(), [server.client(("rest", "grpc")[index % 2]) for index in range(16)]

    def ask(client):
        seen = []
        while not over.is_set():
            given = client.predict(images).filter(like="probability_").to_numpy()
            seen.append([name for name, expected in answers.items() if np.allclose(given, expected, atol=1e-5)])
            time.sleep(0.1)
        return seen

    with ThreadPoolExecutor(16) as pool:
        asking = [pool.submit(ask, client) for client in clients]
        try:
            assert export_saved_model(successor, server.folder / "faces", labels=LABELS).name == "2"
            deadline = time.monotonic() + 20
            fresh = server.client("grpc")
            while time.monotonic() < deadline and not np.allclose(
                fresh.predict(images).filter(like="probability_"), answers["new"], atol=1e-5
            ):
                time.sleep(0.05)
            time.sleep(0.5)
        finally:
            over.set()
        seen = [asked.result() for asked in asking]
    assert all(len(answered) == 1 for client in seen for answered in client)
    assert {client[0][0] for client in seen} == {"old"}
    assert {client[-1][0] for client in seen} == {"new"}
    assert sum(map(len, seen)) > 100
