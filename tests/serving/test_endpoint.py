"""A model on a server as a target: the figures of the same model from disk, and not one request too many."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from satm_tf import assess, attack, attacks, evaluate
from satm_tf.evaluation import Predictions
from satm_tf.models import load_model
from satm_tf.serving import Endpoint, ServingError

from .conftest import SHAPE, build_network

grpc = pytest.importorskip("grpc", reason="needs the client extra")
pytest.importorskip("tensorflow_serving", reason="needs the client extra")
from tensorflow_serving.apis import prediction_service_pb2_grpc  # noqa: E402

COUNT = 20


@pytest.fixture(scope="module")
def photos(exported, tmp_path_factory):
    """PNGs in a folder for each class that the served network sees in them, and a surrogate."""
    folder = tmp_path_factory.mktemp("photos")
    images = np.random.default_rng(3).integers(0, 256, [COUNT, *SHAPE], np.uint8)
    for index, label in enumerate(exported.probabilities(images / np.float32(255)).argmax(-1)):
        for each in range(4):
            (folder / "images" / str(each)).mkdir(parents=True, exist_ok=True)
        (folder / "images" / str(label) / f"{index}.png").write_bytes(tf.io.encode_png(images[index]).numpy())
    build_network(seed=1).save(folder / "surrogate.keras")
    return folder


def _audit(photos, output, targets, requests, *others):
    given = ["--targets", json.dumps(targets), "--images", str(photos / "images"), "--output", str(output)]
    given += ["--sources", json.dumps({"unseen/a": str(photos / "surrogate.keras")}), "--attacks", '{"fgsm": {}}']
    given += [
        "--data",
        '{"class_names": ["0", "1", "2", "3"]}',
        "--check_limit",
        "0",
        "--batch_size",
        "12",
        "--epsilon",
        "[0.4]",
    ]
    given += ["--queries", "[3, 8]", "--query_limit", "10", "--requests", str(requests), *others]
    return evaluate.main(given)


def test_a_server_is_scored_on_a_suite(server, exported, photos, tmp_path):
    suite, results = tmp_path / "suite", tmp_path / "results"
    given = ["--model", str(photos / "surrogate.keras"), "--images", str(photos / "images"), "--format", "folder"]
    given += ["--attack", "fgsm", "--epsilon", "[0.4]", "--output", str(suite)]
    assert attack.main([*given, "--data", '{"class_names": ["0", "1", "2", "3"]}']) == 0
    targets = {"api": f"http://{server.rest}/v1/models/faces", "disk": str(exported.folder)}
    given = ["--suite", str(suite), "--targets", json.dumps(targets), "--output", str(results)]
    assert evaluate.main([*given, "--requests", "3"]) == 0
    (cells, predicted), (others, expected) = (_rows(results, name) for name in targets)
    assert cells == others
    np.testing.assert_array_equal(predicted, expected)


def test_a_server_at_chance_is_warned_of(server, photos, tmp_path, capsys):
    turned = ["--data", '{"class_names": ["3", "0", "1", "2"]}', "--queries", "null", "--limit", "12"]
    address = f"http://{server.rest}/v1/models/faces"
    assert _audit(photos, tmp_path / "out", {"api": address}, 9, *turned) == 0
    assert "api classifies 0% of 12 clean images correctly, no better than chance" in capsys.readouterr().err


def _rows(output, target):
    table = Predictions.load(output / "predictions.npz")
    chosen = table.cells.target == target
    return table.cells[chosen].drop(columns="target").to_numpy().tolist(), table.predicted[chosen]


def test_an_audit_is_that_of_the_model_on_disk_and_keeps_its_budget_to_the_request(
    server, exported, photos, tmp_path, capsys
):
    address = f"http://{server.rest}/v1/models/faces"
    before = server.asked()
    assert _audit(photos, tmp_path / "whole", {"api": address, "disk": str(exported.folder)}, 100) == 0
    whole = server.asked() - before
    assert f"{address} was sent {whole} of 100 requests" in capsys.readouterr().out
    cells, predicted = _rows(tmp_path / "whole", "api")
    others, expected = _rows(tmp_path / "whole", "disk")
    # Clean, FGSM, and two numbers of queries for each of the two searches.
    assert cells == others
    assert len(cells) == 6
    np.testing.assert_array_equal(predicted, expected)
    results = pd.read_csv(tmp_path / "whole" / "results.csv").set_index(["attack", "target"])
    assert results.accuracy["clean", "api"] == 1
    assert results.accuracy["transfer+square-8", "api"] < 1
    # Eight noise images, 20 clean ones and 20 adversarial ones in batches of 12, then searches of ten images.
    assert 5 < whole <= 5 + (2 + 8) + (1 + 8)

    # The same over gRPC, in three runs.
    before, address = server.asked(), f"grpc://{server.grpc}/v1/models/faces"
    assert _audit(photos, tmp_path / "parts", {"api": address}, whole - 4, "--pause", "0.01") == 1
    assert server.asked() - before == whole - 4
    said = capsys.readouterr().err
    assert "has been sent all requests that were allowed" in said
    assert f"Received: requests={whole - 4}" in said
    assert _audit(photos, tmp_path / "parts", {"api": address}, whole - 4) == 1
    assert server.asked() - before == whole - 4, "the requests of all runs count together"
    assert _audit(photos, tmp_path / "parts", {"api": address}, 100) == 0
    assert server.asked() - before == whole, "what was answered was asked again"
    for one, other in zip(_rows(tmp_path / "parts", "api"), (cells, predicted), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--sources", '{"unseen/a": "http://localhost:1/v1/models/faces"}'], "can only be a target"),
        (["--requests", "null"], "--requests and --pause are for"),
        (["--input_range", '{"api": [0, 255]}'], "take images in"),
        (["--targets", '{"api": "http://localhost:1/faces"}'], "grpc://host:8500/v1/models/NAME"),
        (["--targets", '{"holdout/x": "grpc://localhost:1/v1/models/x"}', "--undefended", '["holdout/x"]'], "compare"),
    ],
)
def test_what_a_server_cannot_be_is_said_before_anything_is_asked(photos, tmp_path, capsys, change, message):
    assert _audit(photos, tmp_path / "out", {"api": "http://localhost:1/v1/models/faces"}, 9, *change) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_sources_it_is_measured_on_clean_images_and_by_queries(server, pixels):
    endpoint = Endpoint(f"http://{server.rest}/v1/models/faces/versions/1", requests=30, batch_size=4)
    dataset = tf.data.Dataset.from_tensor_slices((pixels / np.float32(255), np.arange(6, dtype="int32") % 4)).batch(4)
    found = assess({"api": endpoint}, dataset=dataset, attacks=[attacks.FGSM(epsilon=0.1)], queries=[2], query_limit=4)
    assert found.results.attack.tolist() == ["clean", "square-2"]
    assert found.checks is None, "checks need the weights"
    assert found.left_out == ()
    with pytest.raises(ValueError, match=r"outside tf\.function"):
        tf.function(endpoint)(tf.zeros([1, *SHAPE]))


def test_every_attempt_counts_and_what_was_answered_is_kept(server, pixels, tmp_path):
    address, images = f"http://{server.rest}/v1/models/faces", pixels / np.float32(255)
    options = {"journal": tmp_path / "journal.jsonl", "batch_size": 4, "pause": 0.1}
    endpoint = Endpoint(address, requests=5, **options)
    before, began = server.asked(), time.monotonic()
    server.fail(3)
    answers = endpoint(images)
    # Six images are two requests, and the first of them takes four attempts.
    assert (server.asked() - before, endpoint.sent) == (5, 5)
    assert time.monotonic() - began > 4 * 0.1
    with pytest.raises(ServingError, match="requests=5"):
        endpoint(1 - images)
    np.testing.assert_array_equal(endpoint(images[::-1]), answers[::-1])

    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('\n{"answers": {"01')  # as a killed process leaves it
    again = Endpoint(address, requests=7, **options)
    np.testing.assert_array_equal(again(images), answers)
    assert again.sent == 6, "what was cut off counts as sent"
    again(1 - images[:1])
    assert again.sent == 7
    locked = f"import fcntl; fcntl.lockf(open({str(tmp_path / 'journal.jsonl')!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert subprocess.run([sys.executable, "-c", locked], capture_output=True).returncode == 1
    with pytest.raises(ValueError, match=r"is the journal of http"):
        Endpoint(f"{address}/versions/1", requests=7, **options)(images)


class Away(prediction_service_pb2_grpc.PredictionServiceServicer):
    asked = 0

    def Predict(self, request, context):  # noqa: N802
        self.asked += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


def test_a_grpc_server_that_is_away_is_asked_as_often_as_counted(pixels):
    service, away = grpc.server(ThreadPoolExecutor(1)), Away()
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(away, service)
    port = service.add_insecure_port("127.0.0.1:0")
    service.start()
    for retries, requests, message in ((1, 10, "did not answer 2 requests"), (5, 3, "requests=3")):
        away.asked = 0
        endpoint = Endpoint(f"grpc://127.0.0.1:{port}/v1/models/faces", requests=requests, retries=retries)
        with pytest.raises(ServingError, match=message):
            endpoint(pixels / np.float32(255))
        assert away.asked == endpoint.sent == min(retries + 1, requests)
    service.stop(None)


TRUE = {"probabilities": [[0.1, 0.7, 0.2]], "class_id": [1], "label": ["b"], "valid": [True]}


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"probabilities": [[0.1, 0.7, 0.9]]}, "must add up to 1"),
        ({"class_id": [0]}, "class_id be the most probable class"),
        ({"valid": [False], "class_id": [-1]}, "1 of 1 images rejected as invalid"),
        ({"probabilities": [[0.3, 0.7]]}, "Received: 3 and 2 classes"),
        ({"probabilities": [[0.1, 0.7, 0.2]] * 2}, "for 1 images"),
    ],
)
def test_a_server_that_contradicts_itself_is_refused_and_its_answer_not_kept(raw_server, lie, message):
    def served(content):
        body = json.dumps({"outputs": {**TRUE, **content}}).encode()
        return raw_server([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body])

    image = np.zeros([1, 4, 4, 3], np.float32)
    truthful = Endpoint(f"{served({})}/v1/models/faces", requests=3)
    np.testing.assert_allclose(truthful(image), TRUE["probabilities"])
    lying = Endpoint(f"{served(lie)}/v1/models/faces", requests=3)
    lying._known |= truthful._known
    with pytest.raises(ServingError, match=message):
        lying(image + 1)
    assert lying.sent == len(lying._known) == 1


def test_a_server_that_is_too_slow_is_asked_once(raw_server):
    slow = Endpoint(f"{raw_server([b'HTTP/1.1 200 OK'] * 9, pause=0.1)}/v1/models/a", requests=9, timeout=0.3)
    with pytest.raises(ServingError, match=r"within 0\.3 s"):
        load_model(slow, image_shape=(4, 4, 3))
    assert slow.sent == 1


@pytest.mark.parametrize("options", [{"requests": 0}, {"pause": -1}, {"retries": -1}])
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        Endpoint("http://localhost:8501/v1/models/faces", **{"requests": 1, **options})


def test_an_address_is_no_path():
    with pytest.raises(ValueError, match="may be a target"):
        load_model("grpc://localhost:8500/v1/models/faces")
