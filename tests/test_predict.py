"""`satm-tf predict` with an export folder; `serving/test_client.py` asks a server."""

import json

import pandas as pd
import pytest
import tensorflow as tf

from satm_tf import predict
from satm_tf.serving import ServingError, export_saved_model

from .serving.conftest import LABELS, SHAPE, build_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose newest version alone can be loaded, and two files, one of them no image."""
    folder = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("satm_tf.serving.export.verify", lambda *arguments: {})  # has its own tests
        export_saved_model(build_network(), folder / "faces", labels=LABELS, version=10)
    (folder / "faces" / "9").mkdir()
    (folder / "faces" / "9" / "saved_model.pb").write_bytes(b"not this one")
    image = tf.random.stateless_uniform(SHAPE, [0, 1])
    (folder / "face.png").write_bytes(tf.io.encode_png(tf.cast(image * 255, tf.uint8)).numpy())
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_table_is_printed_and_a_file_written(folder, tmp_path, capsys):
    files = [str(folder / name) for name in ("face.png", "notes.txt")]
    given = ["--folder", str(folder / "faces"), "--output", str(tmp_path / "new" / "answers.csv")]
    assert predict.main([*files, *given]) == 0
    answers = pd.read_csv(tmp_path / "new" / "answers.csv", keep_default_na=False)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["answers.csv"]
    assert answers.file.tolist() == files
    assert answers.valid.tolist() == [True, False]
    image = tf.io.decode_png((folder / "face.png").read_bytes())[None] / 255
    expected = tf.nn.softmax(build_network()(tf.cast(image, tf.float32), training=False))[0].numpy()
    assert float(answers.probability_2[0]) == pytest.approx(expected[2], abs=1e-5)
    assert answers.label[0] == LABELS[expected.argmax()]
    order = expected.argsort()[::-1]
    width = max(map(len, files))
    assert capsys.readouterr().out.splitlines() == [
        f"{files[0]:<{width}}  {LABELS[order[0]]} {expected[order[0]]:.1%}",
        f"{files[1]:<{width}}  (not an image)",
    ]

    assert predict.main([files[0], "--folder", str(folder / "faces"), "--top", "3"]) == 0
    first = ", ".join(f"{LABELS[index]} {expected[index]:.1%}" for index in order[:3])
    assert capsys.readouterr().out == f"{files[0]}  {first}\n"

    assert predict.main([*files, "--folder", str(folder / "faces"), "--top", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["file"], row["valid"]) for row in rows] == [(files[0], True), (files[1], False)]
    assert [each["label"] for each in rows[0]["classes"]] == [LABELS[index] for index in order[:2]]
    assert rows[0]["classes"][1]["probability"] == pytest.approx(expected[order[1]], abs=1e-5)
    assert rows[1]["classes"] == []


def test_what_a_detector_finds_suspicious_is_marked(monkeypatch, folder, capsys):
    answers = predict.Client.from_folder(folder / "faces").predict([folder / "face.png"])
    answers["adversarial_score"], answers["suspicious"] = 2.5, True
    monkeypatch.setattr(predict.Client, "predict", lambda self, files: answers)
    given = [str(folder / "face.png"), "--folder", str(folder / "faces")]
    assert predict.main(given) == 0
    assert capsys.readouterr().out.endswith("%  (suspicious)\n")
    assert predict.main([*given, "--json"]) == 0
    assert {"adversarial_score": 2.5, "suspicious": True}.items() <= json.loads(capsys.readouterr().out)[0].items()


def test_a_server_that_names_only_the_first_class(monkeypatch, folder, capsys):
    def answer(self, images):
        columns = {"label": ["old", "young"], "class_id": [2, 0], "probability": [0.7, 0.9]}
        rates = pd.DataFrame([[0.1, 0.2, 0.7], [0.9, 0.06, 0.04]], columns=[f"probability_{i}" for i in range(3)])
        return pd.DataFrame({"file": ["a.png", "bc.png"], "valid": True, **columns}).join(rates)

    monkeypatch.setattr("satm_tf.serving.Client.predict", answer)
    assert predict.main(["a.png", "bc.png", "--host", "localhost:1", "--model", "faces", "--top", "2"]) == 0
    assert capsys.readouterr().out == "a.png   old 70.0%, class 1 20.0%\nbc.png  young 90.0%, class 1 6.0%\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "--folder", "{folder}/faces"], "nowhere.png"),
        (["{folder}/face.png", "--folder", "{folder}"], "a folder with a saved_model.pb"),
        (["{folder}/face.png", "--host", "a:1"], "A server needs both --host and --model"),
        (["{folder}/face.png", "--folder", "{folder}/faces", "--top", "0"], "at least one class"),
        (["{folder}/face.png"], "Give either --host or --folder"),
        (["{folder}/face.png", "--host", "a:1", "--folder", "x"], "Give either --host or --folder"),
        (["{folder}/face.png", "--folder", "{folder}/faces", "--model", "x"], "A server needs both"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, message):
    assert predict.main([argument.format(folder=folder) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_server_that_refuses_is_an_error(monkeypatch, folder, capsys):
    def refuse(self, images):
        raise ServingError("Servable not found")

    monkeypatch.setattr("satm_tf.serving.Client.predict", refuse)
    assert predict.main([str(folder / "face.png"), "--host", "localhost:1", "--model", "faces"]) == 1
    assert capsys.readouterr().err == "error: Servable not found\n"
