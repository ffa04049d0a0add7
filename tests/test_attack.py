"""`satm-tf attack`, from files to files; `evaluation/test_adversarial_images.py` has what it writes."""

from __future__ import annotations

import json

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image

from satm_tf import attack, evaluate
from satm_tf.evaluation import read_results, read_suite


def _network():
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Conv2D(6, 3, activation="tanh"), keras.layers.Flatten(), keras.layers.Dense(5)]
    return keras.Sequential([keras.Input([8, 8, 3]), *layers])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a .keras file, a SavedModel that gives probabilities, and images, flat and by class."""
    folder = tmp_path_factory.mktemp("files")
    network = _network()
    network.save(folder / "network.keras")
    keras.Sequential([keras.Input([8, 8, 3]), network, keras.layers.Softmax()]).save(folder / "softmax.keras")
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint(
        "serving_default",
        lambda images: {"probabilities": tf.nn.softmax(network(images)), "class_id": tf.argmax(network(images), -1)},
        input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, name="images")],
    )
    archive.write_out(str(folder / "saved"), verbose=False)
    generator = np.random.default_rng(4)
    for index in range(50):
        for place in (folder / "flat", folder / "classes" / f"class_{index % 5}"):
            place.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, [8, 8, 3], dtype="uint8")
            Image.fromarray(pixels).save(place / f"{index:03d}.png")
    return folder


def _run(files, tmp_path, *arguments, images="flat", model="network.keras"):
    output = tmp_path / "out"
    given = ["--model", str(files / model), "--images", str(files / images), "--output", str(output)]
    return attack.main([*given, *arguments]), output


def test_pngs_table_and_gallery_agree_with_each_other(files, tmp_path):
    code, output = _run(files, tmp_path, "--epsilon", "[0.02, 0.0625]", "--options", '{"steps": 3}', "--limit", "9")
    assert code == 0
    table = pd.read_csv(output / "results.csv")
    assert table.groupby("epsilon").size().to_dict() == {0.02: 9, 0.0625: 9}
    network = keras.saving.load_model(files / "network.keras")
    for row in table.itertuples():
        source = np.asarray(Image.open(row.source)).astype(int)
        written = np.asarray(Image.open(output / row.file))
        difference = np.abs(written.astype(int) - source)
        # 8-bit levels inside the ball: 0.0625 is 15.9 of them.
        assert difference.max() <= row.epsilon * 255
        assert difference.max() == pytest.approx(row.linf * 255, abs=1e-3)
        assert np.count_nonzero(difference.max(-1)) == row.l0
        predicted = network(written[None] / np.float32(255), training=False).numpy().argmax()
        assert predicted == row.after
        assert row.success == (row.after != row.before)
    assert table.success.any()
    galleries = list(output.glob("unseen/network/pgd-*/gallery.png"))
    assert len(galleries) == 2
    assert all(min(Image.open(path).size) > 300 for path in galleries)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_saved_model_of_probabilities_and_images_by_class(files, tmp_path):
    arguments = ["--format", "folder", "--split", "train"]
    code, output = _run(files, tmp_path, *arguments, "--attack", "fgsm", images="classes", model="saved#probabilities")
    assert code == 0
    table = pd.read_csv(output / "results.csv")
    assert set(table.label) == {f"class_{index}" for index in range(5)}
    assert set(table.after) <= set(table.label)
    np.testing.assert_array_equal(table.success, table.after != table.label)


def test_a_model_of_another_range_is_attacked_in_it(files, tmp_path):
    layers = [keras.Input([8, 8, 3]), keras.layers.Rescaling(1 / 255), keras.saving.load_model(files / "network.keras")]
    keras.Sequential(layers).save(files / "wide.keras")
    code, output = _run(
        files, tmp_path, "--input_range", "[0, 255]", "--limit", "5", "--attack", "fgsm", model="wide.keras"
    )
    assert code == 0
    network = keras.saving.load_model(files / "network.keras")
    for row in pd.read_csv(output / "results.csv").itertuples():
        written = np.asarray(Image.open(output / row.file))
        assert network(written[None] / np.float32(255), training=False).numpy().argmax() == row.after


def test_toward_a_target_and_without_a_cap(files, tmp_path):
    code, output = _run(files, tmp_path, "--attack", "deepfool", "--target", "2", "--limit", "5")
    assert code == 0
    table = pd.read_csv(output / "results.csv")
    np.testing.assert_array_equal(table.success, table.after == 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "pdg"], "Unknown attack. Did you mean 'pgd'"),
        (["--epsilon", "[16]"], "did you mean 16/256"),
        (["--options", '{"step": 3}'], "Unknown option of attack 'pgd'. Did you mean 'steps'"),
        (["--format", "image"], "Unknown data format. Did you mean 'images'"),
        (["--data", '{"fold": 1}'], "Unknown option of the data format 'images'"),
        (["--split", "train"], "This split has no images"),
        (["--image_size", "9"], "needs images of shape (8, 8, 3)"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(files, tmp_path, capsys, arguments, message):
    code, output = _run(files, tmp_path, *arguments)
    assert code == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_classes_must_agree(files, tmp_path, capsys):
    network = keras.Sequential([keras.Input([8, 8, 3]), keras.layers.Flatten(), keras.layers.Dense(3)])
    network.save(files / "three.keras")
    code, output = _run(files, tmp_path, "--format", "folder", images="classes", model="three.keras")
    assert code == 1
    assert "The model has 3 classes, but the images have 5" in capsys.readouterr().err
    assert not output.exists()


def test_probabilities_are_recognised_and_no_folder_is_overwritten(files, tmp_path, capsys):
    code, output = _run(files, tmp_path, "--limit", "2", model="softmax.keras")
    assert code == 0
    code, _ = _run(files, tmp_path, model="softmax.keras")
    assert code == 1
    assert f"{output} exists" in capsys.readouterr().err


def test_images_by_class_make_a_suite_on_which_any_model_is_scored(files, tmp_path, capsys):
    models = {"unseen/a": str(files / "network.keras"), "defended/b": str(files / "softmax.keras")}
    crafted = {"fgsm": {}, "weak": {"name": "pgd", "steps": 2, "epsilon": 0.01}}
    output, results = tmp_path / "suite", tmp_path / "results"
    given = ["--model", json.dumps(models), "--images", str(files / "classes"), "--format", "folder"]
    given += ["--attack", json.dumps(crafted), "--epsilon", "[0.02, 0.05]", "--limit", "20", "--output", str(output)]
    assert attack.main(given) == 0
    digest = read_suite(output).digest
    assert digest in capsys.readouterr().out
    assert {(cell.attack, cell.epsilon) for cell in read_suite(output).cells} == {
        ("fgsm", 0.02),
        ("fgsm", 0.05),
        ("weak", 0.01),
    }
    scored = ["--suite", str(output), "--output", str(results)]
    targets = {"net": str(files / "network.keras"), "saved": f"{files / 'saved'}#probabilities"}
    for _ in range(2):
        assert evaluate.main([*scored, "--targets", json.dumps(targets), "--batch_size", "8"]) == 0
        said = capsys.readouterr()
    assert "worst" in said.out
    assert "no better than chance" in said.err, "an untrained network"
    table = read_results(results / "results.csv").set_index(["source", "attack", "epsilon", "target"]).accuracy
    # An image that was right is in a suite only as what its own network gets wrong, or as itself.
    crafted = pd.read_csv(output / "results.csv").groupby(["network", "attack", "epsilon"]).success.mean()
    for (network, name, epsilon), rate in crafted.items():
        assert table[network, name, epsilon, "net"] == pytest.approx(1 - rate)
        assert table[network, name, epsilon, "saved"] == pytest.approx(1 - rate), "the same network"
    assert digest in (results / "data.txt").read_text()
    assert (results / "report.html").exists()

    for more, message in (
        (["--images", str(files / "classes")], "either --images or --suite"),
        (["--queries", "[5]", "--seed", "3"], "Received: --queries --seed"),
        (["--targets", json.dumps({"net": str(files / "three.keras")})], "with 3 classes"),
    ):
        code = evaluate.main([*scored, "--targets", json.dumps(targets), *more, "--output", str(tmp_path / "no")])
        assert (code, message in capsys.readouterr().err) == (1, True), message
        assert not (tmp_path / "no").exists()
