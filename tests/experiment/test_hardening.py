"""A trained model and its images in, a hardened one and what that is worth out."""

from __future__ import annotations

import importlib
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import satm_tf
from satm_tf import storage
from satm_tf.evaluation import Predictions
from satm_tf.experiment import hardening
from satm_tf.experiment.config import ChecksConfig
from satm_tf.models import register_backbone

main = importlib.import_module("satm_tf.harden").main  # the package's own name is the function

SIZE, CLASSES = 16, ("bottom", "middle", "top")


@register_backbone("unseen_for_hardening", preprocessing={"scale": 2.0, "offset": -1.0}, minimum_size=8)
def unseen(input_shape):
    """The networks that attack, of one layer like the partners."""
    images = keras.Input(input_shape)
    return keras.Model(images, keras.layers.Conv2D(8, 3, 2, activation="relu")(images))


def pictures(count=60):
    """uint8 noise with a bright bar whose height is the class, and the labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = rng.integers(0, 100, (count, SIZE, SIZE, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[5 * label : 5 * label + 4] += 120
    return images, labels


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A softmax classifier of pixels from 0 to 255 that knows the bars, in a file."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.AveragePooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax"),
        ],
        name="mine",
    )
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    images, labels = pictures()
    model.fit(images.astype("float32"), labels, epochs=12, verbose=0)
    file = tmp_path_factory.mktemp("model") / "mine.keras"
    model.save(file)
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The bars as a folder of files, one of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    images, labels = pictures()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / CLASSES[label] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(tf.io.encode_png(image).numpy())
    whole = (folder / "top" / "2.png").read_bytes()
    (folder / "top" / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder


QUICK = {"epochs": 1, "partners": ["tiny_for_experiments"], "epsilon": 0.1}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The networks beside the model are of one layer, and what has tests of its own is left out."""
    monkeypatch.setattr(hardening, "_SMALL", ("tiny_for_experiments", "unseen_for_hardening"))
    monkeypatch.setattr(hardening, "_CHECKS", ChecksConfig(schemes=[]))
    monkeypatch.setattr("satm_tf.serving.export.verify", lambda *arguments: {})


def test_sixty_images_and_a_broken_one_from_the_command_line_stopped_and_resumed(
    mine, photos, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "run"
    given = [str(mine), str(photos), "--output", str(output), "--epochs", "1", "--epsilon", "0.1"]
    given += ["--partners", '["tiny_for_experiments"]', "--detector", "true"]

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("satm_tf.experiment.running.conclude", stop)
        assert main(given) == 130
    networks = {path: path.stat().st_mtime_ns for path in (output / "networks").rglob("*.keras")}
    assert len(networks) == 3 + 3, "three fine-tuned or left as they are, the original, and two hardened"
    capsys.readouterr()

    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "unreadable files: 1 (top/broken.png" in printed
    assert {path: path.stat().st_mtime_ns for path in networks} == networks, "nothing is trained again"
    summary = (output / "summary.txt").read_text()
    assert summary in printed
    assert summary.startswith("Clean accuracy 100.0% -> ")
    assert [line.split("  ")[1] for line in summary.splitlines()[2:7]] == [
        *("unseen models", "queries", "worst of all of these", "same starting weights", "(white box, no claim)")
    ]

    hardened = satm_tf.harden(mine, photos, output=output, detector="feature_classifier", **QUICK)
    served = tf.saved_model.load(str(hardened.saved_model)).signatures["serving_default"]
    images = tf.constant(pictures(6)[0] / np.float32(255))
    answer = served(images=images)
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(hardened.model(images)), atol=1e-5)
    score = hardened.detector.score(hardened.model, images)
    np.testing.assert_allclose(answer["adversarial_score"], score, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(answer["suspicious"], score > hardened.detector.threshold.value)
    card = storage.read_json(hardened.saved_model / "assets.extra" / "model_card.json")["detector"]
    assert card["measured"] == hardened.detector.rates["measured"]
    assert [each["attack"].split(" of ")[1] for each in card["measured"]] == [
        *["unseen_for_hardening (unseen)"] * 2, "itself and the detector (white box)"
    ]  # fmt: skip
    assert all(0 <= each["held"] <= 1 and 0 <= each["auc"] <= 1 for each in card["measured"])
    answers = keras.saving.load_model(mine)(images * 255)
    np.testing.assert_allclose(tf.nn.softmax(hardened.original(images)), answers, atol=1e-5)
    assert hardened.keras_file.exists()
    assert hardened.report.exists()
    assert {"original/mine", "hardened/mine"} <= set(hardened.results.target)
    assert [path.name for path in (output / "exported").iterdir() if path.is_dir()] == ["mine"], "partners are not ours"
    with pytest.raises(ValueError, match=r"results of another call.*epsilon"):
        satm_tf.harden(mine, photos, output=output, **{**QUICK, "epsilon": 0.2})


def test_images_in_memory_are_written_once_and_known_again(mine, tmp_path):
    images, labels = pictures()
    record = hardening._Record(tmp_path, {})
    fields = hardening._images((images, labels), tmp_path, (0, 255), None, record)
    assert fields == {"root": str(tmp_path / "images"), "format": "folder", "class_names": ["0", "1", "2"]}
    assert len(list((tmp_path / "images").rglob("*.png"))) == 60
    np.testing.assert_array_equal(tf.io.decode_png((tmp_path / "images/1/000001.png").read_bytes()), images[1])
    scaled = tf.data.Dataset.from_tensor_slices((images / 127.5 - 1, labels)).shuffle(60).batch(7)
    assert hardening._images(scaled, tmp_path, (-1, 1), None, record) == fields
    with pytest.raises(ValueError, match="results of another call"):
        hardening._images((images[:30], labels[:30]), tmp_path, (0, 255), None, record)
    with pytest.raises(ValueError, match="must lie in input_range"):
        hardening._images((images.astype("float32"), labels), tmp_path, (0, 1), None, record)


def test_what_cannot_be_hardened_is_said_before_any_training(mine, photos, tmp_path):
    def attempt(data, **options):
        satm_tf.harden(mine, data, output=tmp_path / "run", **{**QUICK, **options})

    alike, labels = pictures()
    with pytest.raises(ValueError, match="the same image has another label too: 60"):
        attempt((np.full_like(alike, 90), labels))
    shutil.rmtree(tmp_path / "run")
    dim = np.random.default_rng(0).integers(90, 93, alike.shape, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"no better than chance.*input_range"):
        attempt((dim, labels))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(ValueError, match="at least two classes"):
        attempt((alike, np.ones_like(labels)))
    (tmp_path / "one").mkdir()
    shutil.copytree(photos / "top", tmp_path / "one" / "top")
    with pytest.raises(ValueError, match="at least two classes"):
        attempt(tmp_path / "one")
    with pytest.raises(ValueError, match="distinguishes 3 classes, but the images have 2"):
        attempt((alike, labels % 2))
    with pytest.raises(ValueError, match="Did you mean 'quantised_rbf'"):
        attempt((alike, labels), detector="quantized_rbf")
    with pytest.raises(ValueError, match="needs a scheme with null_share"):
        attempt((alike, labels), detector="null_class")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        satm_tf.harden(tmp_path / "nowhere.keras", photos, output=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        satm_tf.harden(mine, tmp_path / "nowhere", output=tmp_path / "other")
    assert not (tmp_path / "run" / "networks").exists()


def test_epochs_and_partners_are_chosen_for_the_time(monkeypatch, capsys):
    def seconds(config, sizes):
        epochs, partners = config
        return 60 + 30 * epochs * (1 + len(partners))

    monkeypatch.setattr(hardening, "_seconds", seconds)
    usual = {"epochs": 20, "partners": ["a", "b"]}

    def plan(minutes, epochs=None):
        return hardening._plan_for(minutes, lambda *both: both, usual, None, epochs)

    assert plan(16) == {"epochs": 10, "partners": ["a", "b"]}
    assert plan(5.5) == {"epochs": 4, "partners": ["a"]}
    assert plan(6, epochs=5) == {"epochs": 5, "partners": ["a"]}
    assert capsys.readouterr().out == ""
    assert plan(1) == {"epochs": 4, "partners": ["a"]}
    assert "1 min is too short" in capsys.readouterr().out


def predictions(clean, attacked):
    """Of a model before and after, that keep so many of 100 images on clean images and under a stranger's attack."""
    rows, cells = [], []
    for scheme, kept, under in (("original", clean[0], attacked[0]), ("hardened", clean[1], attacked[1])):
        target = f"{scheme}/mine"
        for attack, source, right in (
            ("clean", "", kept), ("fgsm", "holdout/x", under), ("fgsm", target, 0),
        ):  # fmt: skip
            cells.append((attack, 0.0 if attack == "clean" else 0.1, source, target))
            rows.append((np.arange(100) >= right).astype(int))
    frame = pd.DataFrame(cells, columns=["attack", "epsilon", "source", "target"])
    return Predictions(frame, np.array(rows), np.zeros(100, np.int32), 2)


@pytest.mark.parametrize(
    ("clean", "attacked", "reason"),
    [
        ((98, 96), (40, 90), None),
        ((98, 96), (97, 96), "there was nothing to gain"),
        ((98, 60), (60, 50), "lost 38 points on clean images"),
        ((98, 97), (60, 63), "may be chance"),
        ((98, 97), (60, 55), "learnt too little"),
    ],
)
def test_the_summary_says_the_cost_first_and_why_it_did_not_help(clean, attacked, reason):
    lines = hardening.summarise(predictions(clean, attacked), "mine", 8 / 255).splitlines()
    cost = clean[1] - clean[0]
    assert lines[0] == f"Clean accuracy {clean[0]}.0% -> {clean[1]}.0% ({cost:+}.0 points, 100 test images)."
    assert lines[1].endswith("epsilon 8/255, before -> after:")
    assert f"{attacked[0]}.0% -> {attacked[1]}.0%" in lines[2]
    if reason is None:
        assert "did not help" not in lines[-1]
    else:
        assert lines[-1].startswith("The defence did not help: ")
        assert reason in lines[-1]
