"""`satm-tf predict` with an export folder; `serving/test_client.py` asks a server."""

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
    printed = capsys.readouterr().out
    assert f"{expected.max():.1%}" in printed
    assert "(not an image)" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "--folder", "{folder}/faces"], "nowhere.png"),
        (["{folder}/face.png", "--folder", "{folder}"], "a folder with a saved_model.pb"),
        (["{folder}/face.png", "--host", "a:1"], "A server is asked with --host and --model"),
        (["{folder}/face.png"], "Give either --host or --folder"),
        (["{folder}/face.png", "--host", "a:1", "--folder", "x"], "Give either --host or --folder"),
        (["{folder}/face.png", "--folder", "{folder}/faces", "--model", "x"], "A server is asked with"),
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
