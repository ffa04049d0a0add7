"""Suites: written twice alike, refused when anything in them is not what it was, and scored as a plain loop does."""

from __future__ import annotations

import hashlib
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks
from satm_tf.evaluation import ladder_table, read_suite
from satm_tf.evaluation.adversarial_images import write_adversarial

ATTACKS = {"fgsm": attacks.FGSM(epsilon=0.02), "step": attacks.get("pgd", epsilon=0.1, steps=1, seed=3)}
LABELS = np.arange(12, dtype=np.int32) % 4
IMAGES = np.random.default_rng(1).uniform(0.1, 0.9, (12, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def _undrawn():
    """No pictures: they are no part of a suite."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("satm_tf.evaluation.adversarial_images.write_gallery", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def written(make_network, tmp_path_factory):
    """The folder of a suite that two networks made, and the networks; to read from only."""
    keras.utils.set_random_seed(0)
    networks = {"unseen/a": make_network(), "same_scheme/b": make_network(width=4)}
    folder = tmp_path_factory.mktemp("suites") / "suite"
    write_adversarial(folder, networks, IMAGES, LABELS, attacks=ATTACKS, epsilons={"fgsm": [0.02, 0.1]}, batch_size=12)
    return folder, networks


def _pixels(suite, files):
    return np.stack([tf.io.decode_png((suite.folder / file).read_bytes()).numpy() for file in files]) / np.float32(255)


def test_what_it_holds_still_fools_and_is_scored_as_a_plain_loop_does(written, make_network):
    (folder, networks), labels = written, LABELS
    suite = read_suite(folder)
    assert suite.labels == labels.tolist()
    assert suite.class_names == ("0", "1", "2", "3")
    clean = _pixels(suite, suite.files)
    np.testing.assert_allclose(clean, IMAGES, atol=0.5 / 255 + 1e-6)
    assert len(suite.cells) == 2 * (2 + 1)
    targets = {"mine": make_network(width=5), "other": networks["unseen/a"]}
    table = suite.score(targets, batch_size=5)
    right = np.argmax(targets["mine"](clean), -1) == labels
    np.testing.assert_array_equal(table.correct("clean", 0.0, "", "mine"), right)
    worst = np.ones(len(labels), bool)
    for cell in suite.cells:
        assert cell.options["name"] == ATTACKS[cell.attack].name
        predicted = np.argmax(targets["mine"](clean), -1)
        if cell.rows:
            pixels = _pixels(suite, cell.files)
            # Within the ball after rounding, and not the label of the network that it was made on.
            assert np.abs(pixels - clean[cell.rows]).max() <= cell.epsilon + 1e-6
            assert (np.argmax(networks[cell.source](pixels), -1) != labels[cell.rows]).all()
            predicted[cell.rows] = np.argmax(targets["mine"](pixels), -1)
        np.testing.assert_array_equal(table.row(cell.attack, cell.epsilon, cell.source, "mine"), predicted)
        worst &= predicted == labels
    examples = sum(len(cell.rows) for cell in suite.cells)
    assert 0 < examples < len(suite.cells) * len(labels), "or nothing shows what images without an example are"
    assert ladder_table(table).loc["mine", ("worst", "accuracy")] == worst.mean()
    assert set(table.cells.rung) == {"clean", "unseen", "same_scheme"}
    assert f"{examples} adversarial examples of 6 attacks and sources, digest {suite.digest}" in str(suite)


def test_the_same_suite_twice_has_one_digest_wherever_it_lies(written, tmp_path):
    network, first, second = written[1]["unseen/a"], tmp_path / "one", tmp_path / "two"
    for folder in (first, second):
        write_adversarial(folder, {"unseen/a": network}, IMAGES, LABELS, attacks={"fgsm": ATTACKS["fgsm"]})
    assert (first / "suite.json").read_bytes() == (second / "suite.json").read_bytes()
    moved = shutil.move(second, tmp_path / "elsewhere")
    assert read_suite(moved).digest == read_suite(first).digest


def _rewrite(folder, change):
    """Changes the manifest and gives it the digest that then fits."""
    found = json.loads((folder / "suite.json").read_text())
    change(found)
    rest = {key: value for key, value in found.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    (folder / "suite.json").write_text(json.dumps({**rest, "digest": hashlib.sha256(text.encode()).hexdigest()}))


def test_what_is_damaged_cut_off_or_foreign_is_refused_by_name(written, tmp_path):
    whole, _ = written
    manifest = (whole / "suite.json").read_text()
    example = json.loads(manifest)["cells"][1]["examples"][0]["file"]

    def damaged(name, change, error, message):
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        change(folder)
        with pytest.raises(error, match=message):
            read_suite(folder)

    def flip(folder):
        content = bytearray((folder / example).read_bytes())
        content[-20] ^= 1
        (folder / example).write_bytes(content)

    damaged("flipped", flip, ValueError, f"changed or truncated.*{example}")
    damaged("cut", lambda f: (f / example).write_bytes((f / example).read_bytes()[:-5]), ValueError, example)
    damaged("missing", lambda f: (f / "clean/00003.png").unlink(), FileNotFoundError, "clean/00003.png")
    text = manifest.replace('"label": 1', '"label": 2', 1)
    damaged("edited", lambda f: (f / "suite.json").write_text(text), ValueError, "was changed after it was written")
    damaged("half", lambda f: (f / "suite.json").write_text(manifest[:500]), ValueError, "suite.json")
    damaged("list", lambda f: (f / "suite.json").write_text("[]"), ValueError, "not an adversarial suite")
    damaged("none", lambda f: (f / "suite.json").unlink(), FileNotFoundError, "as `satm-tf attack` writes")
    for name, key, value, message in (
        ("foreign", "format", "RobustBench", "not an adversarial suite"),
        ("newer", "version", 2, "reads version 1"),
        ("classes", "class_names", ["0"], "labels of 1 classes"),
        ("shapeless", "image_shape", [16], "does not describe a suite"),
        ("outside", "images", [{"file": "../secret.png", "label": 0, "sha256": ""}], "secret.png"),
        ("absolute", "images", [{"file": "/etc/hosts", "label": 0, "sha256": ""}], "/etc/hosts"),
    ):
        damaged(name, lambda f, k=key, v=value: _rewrite(f, lambda found: found.update({k: v})), ValueError, message)


def test_a_model_of_other_classes_or_shape_is_refused(written, make_network):
    suite = read_suite(written[0])
    with pytest.raises(ValueError, match=r"Received: mine, with 5 classes and images of shape \(16, 16, 3\)"):
        suite.score({"mine": make_network(num_classes=5)})


@pytest.mark.parametrize("name", ["../a", "a b", "/a", "a//b", ""])
def test_a_name_that_is_no_folder_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="becomes a folder"):
        write_adversarial(tmp_path / "out", {name: None}, IMAGES, LABELS, attacks=ATTACKS)
    assert not (tmp_path / "out").exists()
