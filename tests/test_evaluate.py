"""`python -m satm_tf.evaluate`, from files to a report."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from satm_tf import ImageClassifier, evaluate, serving
from satm_tf.attacks import FGSM
from satm_tf.evaluation import Predictions, read_results

# In alphabetical order, as a folder has them.
SIZE, CLASSES, LEVELS = 8, ("black", "grey", "white"), (80, 120, 160)


@keras.saving.register_keras_serializable(package="tests")
class Rounding(keras.layers.Layer):
    """Cuts every gradient off."""

    def call(self, images):
        return tf.round(8 * images) / 8


def _network(column, *layers, last="linear"):
    """A network that judges by the mean brightness of some columns: nearest of three levels, as training would find."""
    network = keras.Sequential(
        [
            keras.Input([SIZE, SIZE, 3]),
            *layers,
            keras.layers.Flatten(),
            keras.layers.Dense(len(CLASSES), activation=last),
        ]
    )
    seen = np.zeros([SIZE, SIZE, 3], "float32")
    seen[:, column : column + 4] = 1
    levels = np.array(LEVELS, "float32") / 255
    # -(mean - level)^2, without the mean's own square, which all classes have.
    network.set_weights([400 * seen.reshape(-1, 1) / seen.sum() * levels, -200 * levels**2])
    return network


def _images(count, seed):
    """Noise around three levels of grey, uint8."""
    labels = np.arange(count) % len(CLASSES)
    noise = np.random.default_rng(seed).normal(scale=10, size=[count, SIZE, SIZE, 3])
    return np.clip(np.array(LEVELS)[labels][:, None, None, None] + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Networks as .keras files and SavedModels, with logits and with probabilities; test images by class."""
    folder = tmp_path_factory.mktemp("files")
    _network(0).save(folder / "plain.keras")
    _network(2, last="softmax").save(folder / "softmax.keras")
    _network(4, Rounding()).save(folder / "rounded.keras")
    inner = keras.Sequential([keras.Input([SIZE, SIZE, 3]), keras.layers.Conv2D(4, 3, activation="tanh")])
    classifier = ImageClassifier(inner, len(CLASSES), image_shape=(SIZE, SIZE, 3), pooling="flatten")
    serving.export_saved_model(classifier, folder / "served", labels=CLASSES)
    images, labels = _images(36, seed=9)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        for part, picture in (("train", image[::-1]), ("test", image)):
            place = folder / "images" / part / CLASSES[label] / f"{index}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(tf.io.encode_png(picture).numpy())
    return folder


@pytest.fixture
def run(files, tmp_path):
    """Runs the command line on the test images; gives the exit code and the output folder."""

    def run(networks, *arguments, output="out"):
        paths = {name: str(files / path) for name, path in networks.items()}
        given = ["--targets", json.dumps(paths), "--images", str(files / "images"), "--output", str(tmp_path / output)]
        return evaluate.main([*given, *arguments]), tmp_path / output

    return run


@pytest.fixture
def undrawn():
    """Leaves out the report and the gallery: drawing them would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("satm_tf.evaluation.assessment.write_report", lambda folder: folder / "report.html")
        patch.setattr("satm_tf.evaluation.assessment.write_galleries", lambda *_, **__: None)
        yield


SMALL = ["--epsilon", "[0.05, 0.1]", "--batch_size", "12", "--check_limit", "0"]


def test_what_it_writes_agrees_with_a_plain_loop(run, files, capsys):
    attacks = '{"fgsm": {}, "ll": {"name": "step_ll", "epsilon": 0.2}}'
    networks = {"plain": "plain.keras", "softmax": "softmax.keras", "served": "served"}
    code, output = run(networks, "--attacks", attacks, *SMALL)
    assert code == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "assessment.json", "blocks", "class_names.json", "config.yaml", "data.txt", "environment.json", "figures",
        "gallery", "predictions.npz", "report.html", "results.csv",
    ]  # fmt: skip
    results = read_results(output / "results.csv")
    assert len(results) == 3 + 3 * 3 * 3
    assert results.groupby("attack").epsilon.unique().map(list).to_dict() == {
        "clean": [0.0],
        "fgsm": [0.05, 0.1],
        "ll": [0.2],
    }
    assert results.one_off_accuracy.isna().all(), "a folder's classes have no order"
    clean = results[results.attack == "clean"].set_index("target").accuracy
    assert clean[["plain", "softmax"]].min() > 0.8, "or no attack could do harm"

    model = keras.saving.load_model(files / "plain.keras")
    loaded = Predictions.load(output / "predictions.npz")
    images = np.stack(
        [
            tf.io.decode_png(path.read_bytes()).numpy() / np.float32(255)
            for name in sorted(CLASSES)
            for path in sorted((files / "images" / "test" / name).iterdir(), key=str)
        ]
    )
    labels = np.repeat(np.arange(3), 12)
    np.testing.assert_array_equal(np.sort(loaded.labels), labels)
    expected = np.mean(np.argmax(model(FGSM(epsilon=0.1)(model, images, labels)), -1) == labels)
    cell = results[(results.attack == "fgsm") & (results.epsilon == 0.1)]
    assert cell[(cell.source == "plain") & (cell.target == "plain")].accuracy.item() == expected
    assert len(list((output / "gallery").glob("*.png"))) == 2
    assert "36 images of the test split" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_every_image_of_a_folder_without_splits_is_measured_in_the_range_that_a_network_takes(files, tmp_path, capsys):
    wide = keras.Sequential([keras.Input([SIZE, SIZE, 3]), keras.layers.Rescaling(1 / 255), *_network(0).layers])
    wide.save(tmp_path / "wide.keras")
    for number, images in enumerate((files / "images" / "test", tmp_path / "only")):
        if number:
            images.mkdir()
            (images / "test").symlink_to(files / "images" / "test", target_is_directory=True)
        arguments = ["--targets", json.dumps({"wide": str(tmp_path / "wide.keras")}), "--images", str(images)]
        arguments += ["--attacks", '{"fgsm": {}}', *SMALL]
        if not number:
            assert evaluate.main([*arguments, "--output", str(tmp_path / "narrow")]) == 0
            assert "--input_range '{\"wide\": [0, 255]}'" in capsys.readouterr().err
        said = [*arguments, "--input_range", '{"wide": [0, 255]}', "--output", str(tmp_path / f"wide{number}")]
        assert evaluate.main(said) == 0
        assert "--input_range" not in capsys.readouterr().err
        results = read_results(tmp_path / f"wide{number}" / "results.csv")
        assert set(results.images) == {36}
        assert results[results.attack == "clean"].accuracy.item() > 0.8
    missing = ["--targets", json.dumps({"wide": str(tmp_path / "wide.keras")}), "--images", str(tmp_path / "none")]
    assert evaluate.main([*missing, "--output", str(tmp_path / "out")]) == 1
    assert "The folder of the images does not exist" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_network_that_hides_its_gradient_is_found(run, capsys):
    networks = {"satm/rounded": "rounded.keras", "holdout/other": "softmax.keras"}
    effort = ["--check_limit", "36", "--check_options", '{"steps": 2, "targets": 1, "queries": 10}']
    code, output = run(networks, "--epsilon", "[0.15]", "--attacks", '{"fgsm": {}}', *effort)
    assert code == 0, "a verdict is no mistake of the command"
    checks = pd.read_csv(output / "checks.csv").set_index(["network", "check"]).verdict
    assert checks[("satm/rounded", "gradient")] == "masking detected"
    assert set(checks.index.get_level_values(0)) == {"satm/rounded"}, "holdouts are to compare with"
    printed = capsys.readouterr().out
    assert "satm/rounded: no gradient reaches the images, so it crafts none" in printed
    assert "  satm/rounded, gradient: No gradient reaches" in printed
    assert set(read_results(output / "results.csv").source) == {"", "holdout/other"}
    assert set(pd.read_csv(output / "surfaces.csv").network) == set(networks)


@pytest.mark.usefixtures("undrawn")
def test_what_was_stopped_goes_on_and_ends_alike(run, monkeypatch, capsys):
    networks = {"plain": "plain.keras"}
    options = ["--attacks", '{"randomised_step": {}}', *SMALL]
    _, whole = run(networks, *options, output="whole")

    keep, saved = Predictions.save, []

    def killed(self, path):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        keep(self, path)

    monkeypatch.setattr(Predictions, "save", killed)
    code, output = run(networks, *options)
    assert code == 130
    assert "Re-run the same command to resume" in capsys.readouterr().err
    assert not (output / "results.csv").exists()
    monkeypatch.undo()
    stamps = {path: path.stat().st_mtime_ns for path in saved}
    assert run(networks, *options)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in saved} == stamps, "what was finished is not made again"
    assert (output / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    # The folder is this evaluation's own.
    assert run(networks, *options, "--seed", "1")[0] == 1
    assert "other values of seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("networks", "arguments", "message"),
    [
        ({"a": "plain.keras"}, ["--attacks", '{"pdg": {}}'], "Did you mean 'pgd'"),
        ({"a": "plain.keras"}, ["--attacks", '{"pgd": {"step": 3}}'], "Did you mean 'steps'"),
        ({"a": "plain.keras"}, ["--epsilon", "[16]"], "did you mean 16/256"),
        ({"a": "nothing.keras"}, [], "No network was found at this path"),
        ({"a": "images"}, [], "A network must be a .keras file"),
        ({"a": "served#logit"}, [], "Unknown output of"),
        ({"a": "plain.keras"}, ["--before", '{"a": "b"}'], "Unknown network"),
        ({"a": "plain.keras"}, ["--before", '{"a": "a"}', "--undefended", '["a"]'], "Unknown network to check"),
        ({"a": "plain.keras"}, ["--data", '{"folds": 1}'], "option of the data format 'folder'"),
        ({"a": "plain.keras"}, ["--format", "table"], "needs `table`"),
        ({"a": "plain.keras"}, ["--format", "images"], "Unknown data format"),
        ({"a": "plain.keras"}, ["--check_options", '{"step": 9}'], "Did you mean 'steps'"),
        ({"a": "plain.keras"}, ["--sources", '{"a": "other.keras"}'], "must refer to one network"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, capsys, networks, arguments, message):
    code, output = run(networks, *arguments)
    assert code == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert not output.exists()


def test_networks_and_images_must_go_together(run, files, capsys):
    keras.Sequential([keras.Input([SIZE, SIZE, 3]), keras.layers.Flatten(), keras.layers.Dense(5)]).save(
        files / "five.keras"
    )
    assert run({"a": "five.keras"})[0] == 1
    assert "distinguish 5 classes, but the images have 3" in capsys.readouterr().err
    assert run({"a": "plain.keras", "b": "five.keras"})[0] == 1
    assert "must have the same num_classes" in capsys.readouterr().err


def test_a_usage_error_has_its_own_exit_code(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run({"a": "plain.keras"}, "--epsilons", "[0.1]")
    assert stopped.value.code == 2


def test_a_grey_network_sees_grey_images_and_what_it_did_can_be_repeated(files, run, tmp_path):
    keras.utils.set_random_seed(0)
    grey = keras.Sequential([keras.Input([SIZE, SIZE, 1]), keras.layers.Flatten(), keras.layers.Dense(3)])
    grey.save(files / "grey.keras")
    # A holdout alone: there is nothing to check.
    code, output = run({"holdout/a": "grey.keras"}, "--attacks", '{"fgsm": {}}', *SMALL[:-1], "10")
    assert code == 0
    assert set(read_results(output / "results.csv").images) == {36}

    # The report says how to repeat it, and that does.
    assert "--config config.yaml --output NEW_FOLDER" in (output / "report.html").read_text()
    again = tmp_path / "again"
    assert evaluate.main(["--config", str(output / "config.yaml"), "--output", str(again)]) == 0
    assert (again / "results.csv").read_bytes() == (output / "results.csv").read_bytes()
