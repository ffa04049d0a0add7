"""The whole command on eighty tiny faces: what it shares, writes, refuses, and that a kill leaves no trace."""

import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from satm_tf.experiment import cost
from satm_tf.models import register_backbone
from satm_tf.reproduce import main


@register_backbone("tiny_for_reproduction", preprocessing={"scale": 2.0, "offset": -1.0}, minimum_size=8)
def tiny(input_shape):
    """A backbone that is traced in no time."""
    images = keras.Input(input_shape)
    return keras.Model(images, keras.layers.Conv2D(8, 5, 2, activation="relu")(images))


def untimed_main(arguments):
    """The command, without the timing of networks, which is tested in experiment/test_cost.py."""
    cost.time_network = lambda *_: cost.Network(1.0, 0.0, 1000)
    return main(arguments)


@pytest.fixture(autouse=True)
def _untimed(monkeypatch):
    monkeypatch.setattr(cost, "time_network", lambda *_: cost.Network(1.0, 0.0, 1000))


NETWORKS = ("vgg16_face", "resnet50_face", "resnet50_img")
HOLDOUTS = ("inception_v3", "resnet101_img", "inception_resnet_v2")


def options(out, folds=(0,)):
    """Forty subjects, two images each, one reading; networks of one layer."""
    roles = {"networks": NETWORKS, "holdouts": HOLDOUTS}
    tiny = [f"--{role}.{name}.backbone=tiny_for_reproduction" for role, names in roles.items() for name in names]
    return [
        *("--out", str(out), "--readings", "least_likely", "--folds", *map(str, folds)),
        *("--data.num_subjects=40", "--data.images_per_subject=2", "--data.image_size=16"),
        *("--fine_tune.epochs=1", "--co_train.epochs=2", "--fine_tune.batch_size=16", "--co_train.batch_size=16"),
        *tiny,
    ]


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.keras")} | {
        path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")
    }


def test_tables_share_their_work(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--table", "1", *options(out)]) == 0
    assert "# Table 1: White-box attacks" in capsys.readouterr().out
    first = stamps(out)
    networks = {
        path.relative_to(out / "faces/seed_0/fold_0/networks").as_posix() for path in first if path.suffix == ".keras"
    }
    assert networks == {"fine_tune/vgg16_face/vgg16_face.keras", "fine_tune/resnet50_face/resnet50_face.keras"}

    # More is asked for: what was there stays as it was, and only what is missing is made.
    more = ["--table", "1", "4", "--figure", "1", "3", "--printed-only", *options(out)]
    assert main(more) == 0
    second = stamps(out)
    assert {path: second[path] for path in first} == first
    added = {path.parent.name for path in second if path.suffix == ".keras" and path not in first}
    assert added == {"satm_least_likely", "satm_without_adaptation_least_likely"}
    results = pd.read_csv(out / "results_faces.csv", keep_default_na=False)
    keys = ["fold", "seed", "attack", "epsilon", "source", "target"]
    assert not results.duplicated(keys).any()
    assert set(results.target.str.split("/").str[0]) == {"before", "satm_least_likely"}

    # The tables are views of these results.
    table = pd.read_csv(out / "tables" / "table_4.csv").set_index(["target", "examples_of", "scheme"])
    ours = results.set_index(["attack", "source", "target"]).accuracy
    cell = "r+step_ll", "satm_least_likely/resnet50_face", "satm_least_likely/vgg16_face"
    assert table.loc[("vgg16_face", "resnet50_face", "satm"), "rate"] == pytest.approx(100 * ours[cell])

    # Figure 3 is the mean over runs of metrics.csv.
    metrics = pd.read_csv(out / "faces/seed_0/fold_0/metrics.csv").set_index(["stage", "epoch"])
    curves = pd.read_csv(out / "figures" / "figure_3_least_likely.csv", index_col="epoch")
    found = metrics.loc["co_train/satm_least_likely", "vgg16_face_adversarial_accuracy"]
    np.testing.assert_allclose(curves["satm, adversarial"], found)
    assert curves.index.tolist() == [1, 2]
    gallery = pd.read_csv(out / "figures" / "figure_1_least_likely.csv")
    assert gallery.test_image.is_unique
    assert (gallery.label != gallery.adversarial_as).all()

    # The same again: nothing is trained or measured, and the cost says so. Another configuration is refused.
    capsys.readouterr()
    assert main([*more, "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "_train/" in line or "_tune/" in line]
    assert {row[1] for row in rows} == {"-"}
    assert main(more) == 0
    assert stamps(out) == second
    assert main([*more, "--co_train.epochs=3"]) == 1
    assert "other values of co_train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--table N"),
        (["--table", "7"], "--idx FOLDER"),
        (["--all"], "--table 1 2 3 4 5 6"),
        (["--table", "7", "--idx", "nowhere_at_all"], "nowhere_at_all"),
        (["--table", "2", "--scale", "paper"], "--data.root FOLDER"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_reproduction_ends_as_one_that_was_not(tmp_path):
    """A real process, killed without warning while it co-trains; then the same command, once more."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    asked = ["--table", "2", "--printed-only", "--co_train.checkpoint_seconds=0", "--networks.vgg16_face.dropout=0.3"]
    # By way of this file, which registers the backbone.
    program = f"import sys; from {__name__} import untimed_main; sys.exit(untimed_main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *asked, *options(killed)]
    started = {"cwd": Path(__file__).parents[1], "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **started)
    run = killed / "faces" / "seed_0" / "fold_0"
    checkpoint = run / "checkpoints" / "co_train" / "satm_least_likely" / "previous.ckpt"
    deadline = time.monotonic() + 300
    while not checkpoint.exists():
        assert process.poll() is None, "it must not end by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (run / "networks" / "co_train").exists()
    before = stamps(run)
    assert len(before) == 2, "the fine-tuned pair"

    again = subprocess.run(command, timeout=300, cwd=started["cwd"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert main([*asked, *options(whole)]) == 0
    assert {path: stamps(run)[path] for path in before} == before, "nothing is computed twice"
    other = whole / "faces" / "seed_0" / "fold_0"
    for name in ("results_faces.csv", "tables/table_2.csv"):
        assert (killed / name).read_text() == (whole / name).read_text()
    assert (run / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    for path in run.rglob("*.keras"):
        weights = [keras.saving.load_model(each).get_weights() for each in (path, other / path.relative_to(run))]
        for found, expected in zip(*weights, strict=True):
            np.testing.assert_array_equal(found, expected)
