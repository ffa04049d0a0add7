"""The whole job on a hundred tiny images: what it writes, that it repeats, resumes, and refuses."""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml

from satm_tf import experiment, train
from satm_tf.data import Augmentation
from satm_tf.experiment import RunFolder, Stage
from satm_tf.experiment import config as configuration
from satm_tf.experiment.card import facts_from_run
from tests.experiment.conftest import SIZE


def test_a_run_folder_holds_what_it_should(config, tmp_path, capsys, request):
    config = dataclasses.replace(config, export=dataclasses.replace(config.export, networks=["a"]))
    results = experiment.run(config)
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "assessment.json", "before_defence.png", "checks.csv", "class_names.json", "config.yaml", "data.txt",
        "environment.json", "exports.json", "figures", "gallery", "logs", "metrics.csv", "networks", "predictions.npz",
        "report.html", "results.csv", "surfaces.csv",
    ]  # fmt: skip
    measured = ["ensemble/a", "ensemble/b", "satm/a", "satm/b", "holdout/c"]
    assert len(results) == 5 + 2 * 5 * 5
    assert sorted(set(results.target)) == sorted(measured)
    assert results[results.attack == "clean"].accuracy.min() > 0.6, "the networks must have learnt"
    assert results.groupby("attack").epsilon.first().to_dict() == {"clean": 0.0, "r+step_ll": 0.1, "r+fgsm": 0.2}
    assert set(results.images) == {60}
    assert results.one_off_accuracy.isna().all(), "digits have no order"

    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics.groupby("stage", sort=False).size().to_dict() == {
        "fine_tune/a": 2, "fine_tune/b": 2, "fine_tune/c": 2, "co_train/ensemble": 1, "co_train/satm": 1,
    }  # fmt: skip
    assert json.loads((run / "environment.json").read_text())["keras"] == keras.__version__
    assert yaml.safe_load((run / "config.yaml").read_text())["attack"]["epsilon"] == 0.1

    served = tf.saved_model.load(str(tmp_path / "exported" / "a" / "1")).signatures["serving_default"]
    network = keras.saving.load_model(run / "networks" / "co_train" / "satm" / "a.keras")
    images = np.random.default_rng(0).uniform(size=(3, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(
        served(images=tf.constant(images))["probabilities"], tf.nn.softmax(network(images)), atol=1e-5
    )

    checks = pd.read_csv(run / "checks.csv")
    assert set(checks.network) == {"satm/a", "satm/b"}
    page = (run / "report.html").read_text()
    assert all(word in page for word in ("Label leaking", "satm/a", "co_train/satm", "r+fgsm"))
    card = json.loads((tmp_path / "exported" / "a" / "1" / "assets.extra" / "model_card.json").read_text())
    assert "satm" in json.dumps(card)

    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if re.match(r"stage \d", line)]
    parts = [*map(str, config.stages()), "measure", "check", "export"]
    assert [re.sub(r", (about \d+ min|less than a minute) left$", "", line) for line in lines] == [
        f"stage {number} of 8: {part}" for number, part in enumerate(parts, 1)
    ]
    assert [line.endswith(" left") for line in lines] == [False] + [True] * 7, "the first has nothing to go by"
    assert re.search(r"co_train/satm: epoch 1/1  loss \d?\.\d\d  clean (\.\d\d|1\.00)  adv (\.\d\d|1\.00)\n", printed)
    assert not printed.startswith("These faces are drawn")
    assert "accuracy, r+step_ll, epsilon 0.1" in printed
    assert "Label leaking" in printed
    assert "one off" not in printed

    # The same command again: nothing is trained, measured or exported a second time, and the frame is the same.
    stamps = {path: path.stat().st_mtime_ns for path in [*run.rglob("*"), *(tmp_path / "exported").rglob("*")]}
    pd.testing.assert_frame_equal(experiment.run(config), results)
    changed = [
        path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp and path.name != "metrics.csv"
    ]
    assert [path for path in changed if path != run] == []

    # What has been seen once is left out from here on.
    request.getfixturevalue("without_pictures")
    request.getfixturevalue("untimed")

    # Moved and handed over, with its own config.yaml for a configuration: it is the same run, and finished.
    run = run.rename(tmp_path / "handed_over")
    moved = RunFolder(run)
    again = ["--config", str(run / "config.yaml"), "--run_dir", str(run)]
    capsys.readouterr()
    assert train.main([*again, "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {row[0]: row[1] for row in rows if row[0] in parts} == dict.fromkeys(parts, "-")
    assert train.main(again) == 0
    printed = capsys.readouterr().out
    assert printed.count("finished before") == 5
    assert "stage " not in printed
    assert "--config config.yaml --run_dir NEW_FOLDER" in page

    # Resumed between two stages, in another folder and for one attack: the same figures.
    resumed = dataclasses.replace(
        config,
        run_dir=str(tmp_path / "resumed"),
        evaluation_attacks={"r+step_ll": config.evaluation_attacks["r+step_ll"]},
        checks=configuration.ChecksConfig(schemes=[]),
        export=configuration.ExportConfig(),
    )
    for stage in config.stages()[:-1]:
        shutil.copytree(moved.networks(stage), resumed.folder.networks(stage))
    expected = results[results.attack != "r+fgsm"].reset_index(drop=True)
    pd.testing.assert_frame_equal(experiment.run(resumed), expected)

    # Another seed is another configuration; in a folder of its own it gives other figures.
    reseeded = dataclasses.replace(config, seed=2)
    for what in (experiment.run, experiment.check):
        with pytest.raises(ValueError, match="Received: other values of seed"):
            what(dataclasses.replace(reseeded, run_dir=str(run)))


@pytest.mark.usefixtures("without_pictures")
def test_schemes_train_some_networks_and_freeze_those_of_another_scheme(config, tmp_path):
    """The cascade: one network learns from another that was defended before it."""
    described = dataclasses.replace(
        config,
        holdouts={},
        data=dataclasses.replace(config.data, limit=64),
        loss=configuration.LossConfig(class_weights="balanced", label_smoothing=0.1),
        precision="mixed_bfloat16",
        schemes={
            "first": configuration.SchemeConfig(preset="adversarial", networks=["b"]),
            "cascade": configuration.SchemeConfig(preset="cascade", networks=["a"], frozen_from="first"),
            "further": configuration.SchemeConfig(
                preset="undefended", networks=["a"], clean_weight=0.0, starts_from="cascade", epochs=2
            ),
        },
        checks=configuration.ChecksConfig(schemes=[]),
        export=configuration.ExportConfig(),
    )
    results = experiment.run(described)
    assert sorted(set(results.target)) == ["cascade/a", "first/b", "further/a"]
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv").set_index("stage")
    assert metrics.loc["co_train/cascade", "val_a_domain_loss"] > 0
    assert np.isnan(metrics.loc["co_train/first", "a_loss"])
    network = keras.saving.load_model(tmp_path / "run" / "networks" / "co_train" / "cascade" / "a.keras")
    assert {layer.compute_dtype for layer in network.backbone.layers if layer.weights} == {"bfloat16"}
    # A scheme that starts from another trains for as long as it says; with nothing to learn its weights stay.
    weights = {
        stage: RunFolder(tmp_path / "run").load(Stage.parse(stage), "a").get_weights()
        for stage in ("fine_tune/a", "co_train/cascade", "co_train/further")
    }
    for before, after in zip(weights["co_train/cascade"], weights["co_train/further"], strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(weights["fine_tune/a"][0], weights["co_train/cascade"][0])
    assert metrics.index.value_counts()[["co_train/cascade", "co_train/further"]].to_list() == [1, 2]
    stages = ["fine_tune/a", "co_train/cascade", "co_train/further"]
    needed = map(str, described.needed_stages([Stage("co_train", "further")]))
    assert [stage for stage in needed if "b" not in stage] == [
        *stages[:1],
        "co_train/first",
        *stages[1:],
    ]
    assert list(facts_from_run(tmp_path / "run", "further", "a")["training"]["epochs"]) == stages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: dataclasses.replace(c, strategy="mirored"), "Did you mean 'mirrored'"),
        (
            lambda c: dataclasses.replace(c, loss=configuration.LossConfig(class_weights=[1.0])),
            "a weight for each of 3 classes",
        ),
        (
            lambda c: dataclasses.replace(c, loss=configuration.LossConfig(order_temperature=1.0)),
            "in a meaningful order",
        ),
        (lambda c: dataclasses.replace(c, data=dataclasses.replace(c.data, root=None)), "--data.root FOLDER"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_any_work(config, change, message, tmp_path):
    for what in (experiment.run, experiment.check):
        with pytest.raises(ValueError, match=message):
            what(change(config))
    assert not (tmp_path / "run").exists()


def test_a_missing_folder_is_refused_before_any_work(config, tmp_path):
    missing = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        experiment.run(missing)
    assert not (tmp_path / "run").exists()


def test_the_command_line_prints_errors_and_no_traceback(tmp_path, capsys):
    code = train.main(["--config", "fashion_mnist", "--run_dir", str(tmp_path / "run")])
    assert code == 1
    assert capsys.readouterr().err.startswith("error: The format 'idx' needs a folder: --data.root FOLDER")


def test_a_run_that_is_stopped_by_hand_says_so(monkeypatch, capsys):
    def stop(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", stop)
    assert train.main([]) == 130
    assert capsys.readouterr().err == "Stopped. Re-run the same command to resume.\n"


def test_drawn_faces_are_said_to_be_drawn_before_anything_else(monkeypatch, tmp_path, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("satm_tf.experiment.running.load_data", stop)
    monkeypatch.chdir(tmp_path)
    note = "These faces are drawn by a program. For your own images: --data.format FORMAT --data.root FOLDER\n"
    assert train.main([]) == 130
    assert capsys.readouterr().out == note
    assert train.main(["--data.format", "folder", "--data.root", "photos"]) == 130
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_two_workers_run_the_whole_experiment(config, tmp_path):
    """Two real processes of the command line on one run folder, and the networks of one process beside theirs."""
    config = dataclasses.replace(
        config,
        networks={"a": configuration.NetworkConfig("compact_vgg")},
        holdouts={},
        fine_tune=configuration.TrainingConfig(epochs=1, batch_size=32, optimizer="sgd", learning_rate=0.01),
        schemes={"undefended": configuration.SchemeConfig(preset="undefended")},
        checks=configuration.ChecksConfig(schemes=[]),
        export=configuration.ExportConfig(),
    )
    run = tmp_path / "together"
    described = tmp_path / "described.yaml"
    together = dataclasses.replace(config, run_dir=str(run), strategy="multi_worker")
    described.write_text(yaml.safe_dump(dataclasses.asdict(together), sort_keys=False))
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        cluster = {"worker": [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, other)]}
    workers = []
    for index in range(2):
        task = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        command = ["timeout", "-s", "KILL", "200", sys.executable, "-m", "satm_tf.train", "--config", str(described)]
        workers.append(
            subprocess.Popen(
                command, env={**os.environ, "TF_CONFIG": task}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    printed = [worker.communicate()[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(printed)
    assert (run / "report.html").exists()

    experiment.train(config, [Stage("fine_tune", "a")])
    paths = [folder / "networks" / "fine_tune" / "a" / "a.keras" for folder in (run, tmp_path / "run")]
    for found, expected in zip(*[keras.saving.load_model(path).get_weights() for path in paths], strict=True):
        # The order of sums over two halves of a batch, through five steps.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_killed_run_ends_as_one_that_was_not(config, tmp_path):
    """A real process, killed without warning while it co-trains, and the same command again."""
    config = dataclasses.replace(
        config,
        networks={"a": configuration.NetworkConfig("compact_vgg", dropout=0.2)},
        holdouts={},
        schemes={"pgd": configuration.SchemeConfig(preset="pgd", attack={"name": "pgd", "steps": 2})},
        data=dataclasses.replace(config.data, augmentation=Augmentation(flip=False)),
        co_train=configuration.TrainingConfig(epochs=2, batch_size=8, checkpoint_seconds=0.0, patience=1),
        evaluation_attacks={"r+fgsm": config.evaluation_attacks["r+fgsm"]},
        checks=configuration.ChecksConfig(schemes=[]),
        export=configuration.ExportConfig(),
    )
    described = tmp_path / "described.yaml"
    killed = tmp_path / "killed"
    described.write_text(
        yaml.safe_dump(dataclasses.asdict(dataclasses.replace(config, run_dir=str(killed))), sort_keys=False)
    )
    command = [sys.executable, "-m", "satm_tf.train", "--config", str(described)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = killed / "checkpoints" / "co_train" / "pgd" / "previous.ckpt"
    deadline = time.monotonic() + 300
    while not checkpoint.exists():
        assert process.poll() is None, "it must not end by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (killed / "networks" / "co_train").exists()
    without_level = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    resumed = subprocess.run(command, check=True, capture_output=True, timeout=300, text=True, env=without_level)
    assert "\nstage 2 of 3: co_train/pgd\n" in resumed.stdout, "what was done before tells nothing of the speed"
    assert resumed.stderr == "", "neither start-up messages nor warnings of retracing"

    experiment.run(config)
    for name in ("metrics.csv", "results.csv"):
        assert (killed / name).read_text() == (tmp_path / "run" / name).read_text()
    for stage in ("fine_tune/a", "co_train/pgd"):
        paths = [folder / "networks" / stage / "a.keras" for folder in (killed, tmp_path / "run")]
        weights = [keras.saving.load_model(path).get_weights() for path in paths]
        for found, expected in zip(*weights, strict=True):
            np.testing.assert_array_equal(found, expected)
