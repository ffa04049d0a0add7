"""The whole job on a hundred tiny images: what it writes, that it repeats, goes on, and refuses."""

import dataclasses
import json
import os
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

from satm_tf import train
from satm_tf.data import Augmentation
from satm_tf.experiment import config as configuration
from satm_tf.experiment import images as loading
from satm_tf.experiment import outcome
from satm_tf.experiment import stages as experiment
from satm_tf.experiment.card import facts_from_run
from satm_tf.models import register_backbone

SIZE, CLASSES = 16, 3


class StoppedError(Exception):
    pass


@register_backbone("tiny_for_experiments", preprocessing={"scale": 2.0, "offset": -1.0}, minimum_size=8)
def tiny(input_shape):
    """A backbone that learns the tests' images within an epoch or two."""
    images = keras.Input(input_shape)
    return keras.Model(images, keras.layers.Conv2D(8, 5, 2, activation="relu")(images))


@pytest.fixture(scope="module")
def idx_folder(tmp_path_factory):
    """Noise with a bright bar at one of three heights, as IDX files: 180 to train and validate, 60 to test."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for part, count in (("train", 180), ("t10k", 60)):
        labels = (np.arange(count) % CLASSES).astype(np.uint8)
        images = rng.integers(0, 100, (count, SIZE, SIZE), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[5 * label : 5 * label + 4] += 120
        for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            header = b"\0\0\x08" + bytes([array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return folder


@pytest.fixture
def config(idx_folder, tmp_path):
    """Two networks, a holdout, two schemes, one epoch of everything."""
    network = configuration.NetworkConfig("tiny_for_experiments")
    training = configuration.TrainingConfig(epochs=2, batch_size=32, learning_rate=0.01)
    return configuration.Config(
        name="tiny",
        run_dir=str(tmp_path / "run"),
        seed=1,
        data=configuration.DataConfig(format="idx", root=str(idx_folder), image_size=SIZE, cache=True),
        networks={"a": network, "b": dataclasses.replace(network, dropout=0.2)},
        holdouts={"c": network},
        fine_tune=training,
        co_train=dataclasses.replace(training, epochs=1),
        attack={"name": "randomised_step", "epsilon": 0.1},
        schemes={
            "ensemble": configuration.SchemeConfig(learns_from={"a": "frozen_b", "b": "frozen_a"}),
            "satm": configuration.SchemeConfig(
                preset="satm", domain_adaptation={"name": "domain_adversarial", "hidden": 8}
            ),
        },
        evaluation_attacks={"r+step_ll": {"name": "randomised_step"}, "r+fgsm": {"name": "fgsm", "epsilon": 0.2}},
        checks=configuration.ChecksConfig(schemes=["satm"], limit=12, effort={"steps": 2, "targets": 1, "queries": 5}),
        export=configuration.ExportConfig("satm", str(tmp_path / "exported")),
    )


def test_a_run_folder_holds_what_it_should(config, tmp_path, capsys):
    results = experiment.run(config)
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "checks.csv", "class_names.json", "config.yaml", "data.txt", "environment.json", "exports.json",
        "figures", "gallery", "logs", "metrics.csv", "networks", "predictions.npz", "report.html", "results.csv",
        "surfaces.csv",
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

    for name in "ab":
        served = tf.saved_model.load(str(tmp_path / "exported" / name / "1")).signatures["serving_default"]
        network = keras.saving.load_model(run / "networks" / "co_train" / "satm" / f"{name}.keras")
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

    # Moved and handed over, with its own config.yaml for a configuration: it is the same run, and finished.
    run = run.rename(tmp_path / "handed_over")
    again = ["--config", str(run / "config.yaml"), "--run_dir", str(run)]
    capsys.readouterr()
    assert train.main([*again, "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    parts = [*experiment.all_stages(config), "measure", "check", "export"]
    assert {row[0]: row[1] for row in rows if row[0] in parts} == dict.fromkeys(parts, "-")
    assert train.main(again) == 0
    assert capsys.readouterr().out.count("finished before") == 5
    assert "--config config.yaml --run_dir NEW_FOLDER" in page

    # From between two stages on, in another folder: the same figures.
    resumed = dataclasses.replace(
        config,
        run_dir=str(tmp_path / "resumed"),
        checks=configuration.ChecksConfig(schemes=[]),
        export=configuration.ExportConfig(),
    )
    shutil.copytree(run / "networks" / "fine_tune", tmp_path / "resumed" / "networks" / "fine_tune")
    pd.testing.assert_frame_equal(experiment.run(resumed), results)

    # Another seed is another configuration; in a folder of its own it gives other figures.
    reseeded = dataclasses.replace(config, seed=2)
    for what in (experiment.run, experiment.check):
        with pytest.raises(ValueError, match="Received: other values of seed"):
            what(dataclasses.replace(reseeded, run_dir=str(run)))


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
            "on": configuration.SchemeConfig(
                preset="undefended", networks=["a"], clean_weight=0.0, starts_from="cascade", epochs=2
            ),
        },
        checks=configuration.ChecksConfig(schemes=[]),
        export=configuration.ExportConfig(),
    )
    results = experiment.run(described)
    assert sorted(set(results.target)) == ["cascade/a", "first/b", "on/a"]
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv").set_index("stage")
    assert metrics.loc["co_train/cascade", "val_a_domain_loss"] > 0
    assert np.isnan(metrics.loc["co_train/first", "a_loss"])
    network = keras.saving.load_model(tmp_path / "run" / "networks" / "co_train" / "cascade" / "a.keras")
    assert {layer.compute_dtype for layer in network.backbone.layers if layer.weights} == {"bfloat16"}
    # What goes on does so from where the other scheme ended, for as long as it says; with nothing to learn it stays.
    weights = {
        stage: outcome.load_network(tmp_path / "run", stage, "a").get_weights()
        for stage in ("fine_tune/a", "co_train/cascade", "co_train/on")
    }
    for before, after in zip(weights["co_train/cascade"], weights["co_train/on"], strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(weights["fine_tune/a"][0], weights["co_train/cascade"][0])
    assert metrics.index.value_counts()[["co_train/cascade", "co_train/on"]].to_list() == [1, 2]
    stages = ["fine_tune/a", "co_train/cascade", "co_train/on"]
    assert [stage for stage in experiment.needed_stages(described, ["co_train/on"]) if "b" not in stage] == [
        *stages[:1],
        "co_train/first",
        *stages[1:],
    ]
    assert list(facts_from_run(tmp_path / "run", "on", "a")["training"]["epochs"]) == stages


def changed(config, **changes):
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: changed(c, networks={}), "needs networks"),
        (lambda c: changed(c, attack={"name": "fgms", "epsilon": 0.1}), "Did you mean 'fgsm'"),
        (lambda c: changed(c, attack={"name": "fgsm", "epsilon": 16}), "16/256"),
        (lambda c: changed(c, attack={"name": "fgsm", "epsilon": 0.1, "alfa": 1}), "option of attack"),
        (lambda c: changed(c, evaluation_attacks={"x": {"name": "nothing"}}), "Unknown attack"),
        (lambda c: changed(c, networks={"a": configuration.NetworkConfig("compact_vg")}), "Did you mean 'compact_vgg'"),
        (lambda c: changed(c, holdouts={"a": c.networks["a"]}), "must not be one of the networks"),
        (lambda c: changed(c, networks={"a": c.networks["a"], "frozen_a": c.networks["a"]}), "once it is frozen"),
        (lambda c: changed(c, networks={"itself": c.networks["a"]}), "these are words"),
        (lambda c: changed(c, networks={"a/b": c.networks["a"]}), "no dot or slash"),
        (lambda c: changed(c, schemes={"s": configuration.SchemeConfig(learns_from="other")}), "Did you mean 'others'"),
        (
            lambda c: changed(c, schemes={"s": configuration.SchemeConfig(learns_from={"a": "frozen_z", "b": "a"})}),
            "Unknown source",
        ),
        (lambda c: changed(c, schemes={"s": configuration.SchemeConfig(networks=["a", "z"])}), "Unknown network"),
        (lambda c: changed(c, schemes={"s": configuration.SchemeConfig(frozen_from="t")}), "trained before it"),
        (lambda c: changed(c, schemes={"s": configuration.SchemeConfig(starts_from="t")}), "trained before it"),
        (
            lambda c: changed(
                c,
                schemes={
                    "s": configuration.SchemeConfig(preset="adversarial", networks=["a"]),
                    "t": configuration.SchemeConfig(starts_from="s"),
                },
            ),
            "Missing: b",
        ),
        (
            lambda c: changed(c, schemes={**c.schemes, "s": configuration.SchemeConfig(epochs=0)}),
            "schemes.s takes an epoch or more",
        ),
        (lambda c: changed(c, schemes={"s": configuration.SchemeConfig(preset="stam")}), "Did you mean 'satm'"),
        (lambda c: changed(c, checks=configuration.ChecksConfig(schemes=["stam"])), "Did you mean 'satm'"),
        (
            lambda c: changed(c, schemes={"s": configuration.SchemeConfig(batch_norm={"aa": "frozen"})}),
            "Received: aa; networks that do: a, b",
        ),
        (
            lambda c: changed(c, schemes={"s": configuration.SchemeConfig(attack={"z": {"name": "fgsm"}})}),
            "Unknown source in attack",
        ),
        (
            lambda c: changed(c, schemes={"s": configuration.SchemeConfig(preset="mutual", networks=["a"])}),
            "'a' cannot learn from 'others'",
        ),
        (
            lambda c: changed(c, schemes={"s": configuration.SchemeConfig(preset="collaborative", networks=["a"])}),
            "peer_weight needs at least two",
        ),
        (lambda c: changed(c, checks=configuration.ChecksConfig(effort={"step": 1})), "Did you mean 'steps'"),
        (lambda c: changed(c, co_train=configuration.TrainingConfig(epochs=0)), "co_train takes an epoch or more"),
        (lambda c: changed(c, strategy="mirored"), "Did you mean 'mirrored'"),
        (lambda c: changed(c, loss=configuration.LossConfig(class_weights=[1.0])), "a weight for each of 3 classes"),
        (lambda c: changed(c, loss=configuration.LossConfig(order_temperature=1.0)), "in a meaningful order"),
        (lambda c: changed(c, export=configuration.ExportConfig("stam")), "export.scheme must be one of"),
        (lambda c: changed(c, fine_tune=configuration.TrainingConfig(optimizer="adamm")), "adamm"),
        (lambda c: changed(c, data=dataclasses.replace(c.data, root=None)), "--data.root FOLDER"),
        (lambda c: changed(c, data=dataclasses.replace(c.data, image_size=4)), "at least 8 x 8"),
    ],
)
def test_bad_configurations_are_refused_before_any_work(config, change, message, tmp_path):
    for what in (experiment.run, experiment.check):
        with pytest.raises(ValueError, match=message):
            what(change(config))
    assert not (tmp_path / "run").exists()


def test_a_missing_folder_is_refused_before_any_work(config, tmp_path):
    missing = changed(config, data=dataclasses.replace(config.data, root=str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        experiment.run(missing)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 30 PNGs, dark, middling and bright, and a CSV file that names them."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for index in range(30):
        name = ("dark", "middling", "bright")[index % 3]
        (folder / name).mkdir(exist_ok=True)
        image = np.full((SIZE, SIZE, 3), 40 + 80 * (index % 3), np.uint8)
        (folder / name / f"{index}.png").write_bytes(tf.io.encode_png(image).numpy())
        rows.append({"path": f"{name}/{index}.png", "label": name, "fold": index // 3 % 5, "subject": index})
    pd.DataFrame(rows).to_csv(folder.with_suffix(".csv"), index=False)
    return folder


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_a_folder_and_a_table_of_images_reach_the_networks(config, pictures, kind, tmp_path):
    names = ["dark", "middling", "bright"]
    options = {"format": kind, "root": str(pictures), "class_names": names, "ordered": True, "test_share": 0.2}
    table = {"table": str(pictures.with_suffix(".csv")), "fold": 1} if kind == "table" else {}
    described = dataclasses.replace(config.data, validation_share=0.2, **options, **table)
    images = loading.load_data(described, tmp_path, seed=0)
    assert (images.class_names, images.ordered, len(images.test)) == (tuple(names), True, 6)
    for split in (images.train, images.validation, images.test):
        for batch, labels in loading.make_batches(split, changed(config, data=described)):
            np.testing.assert_allclose(batch[:, 0, 0, 0], (40 + 80 * labels.numpy()) / 255, atol=1e-6)


def test_a_table_that_is_not_named_is_asked_for(config, pictures, tmp_path):
    described = dataclasses.replace(config.data, format="table", root=str(pictures))
    with pytest.raises(ValueError, match=r"--data\.table FILE"):
        loading.load_data(described, tmp_path, seed=0)


def test_a_loss_that_is_no_number_stops_the_run(config, tmp_path):
    diverging = configuration.TrainingConfig(epochs=3, batch_size=32, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"clean_loss of a is not a finite number at step [1-9]"):
        experiment.run(changed(config, fine_tune=diverging))
    assert not (tmp_path / "run" / "networks" / "fine_tune" / "a").exists()


def test_the_command_line_prints_errors_and_no_traceback(tmp_path, capsys):
    code = train.main(["--config", "fashion_mnist", "--run_dir", str(tmp_path / "run")])
    assert code == 1
    assert capsys.readouterr().err.startswith("error: Data of the format 'idx' must be given as --data.root FOLDER")


def test_a_run_that_is_stopped_by_hand_says_so(monkeypatch, capsys):
    def stop(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", stop)
    assert train.main([]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n"


def test_what_was_exported_before_a_kill_is_not_exported_again(config, monkeypatch, tmp_path):
    exported = []

    def export(network, place, *, labels, card):
        if len(exported) == 1:
            exported.append("the kill")
            raise StoppedError
        exported.append(place.name)
        return place / "1"

    monkeypatch.setattr(outcome, "load_network", lambda folder, stage, name: None)
    monkeypatch.setattr(outcome, "facts_from_run", lambda folder, scheme, name: {})
    monkeypatch.setattr(outcome.serving, "export_saved_model", export)
    with pytest.raises(StoppedError):
        outcome._export(config, ("x",), tmp_path)
    outcome._export(config, ("x",), tmp_path)
    assert exported == ["a", "the kill", "b"]
    assert list(json.loads((tmp_path / "exports.json").read_text())) == ["a", "b"]


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

    experiment.run(config)
    paths = [folder / "networks" / "fine_tune" / "a" / "a.keras" for folder in (run, tmp_path / "run")]
    for found, expected in zip(*[keras.saving.load_model(path).get_weights() for path in paths], strict=True):
        # The order of sums over two halves of a batch, through five steps.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(config, tmp_path):
    """A real process, killed without warning while it co-trains, and the same command again."""
    config = dataclasses.replace(
        config,
        networks={"a": configuration.NetworkConfig("compact_vgg", dropout=0.2)},
        holdouts={},
        schemes={"pgd": configuration.SchemeConfig(preset="pgd", attack={"name": "pgd", "steps": 2})},
        data=dataclasses.replace(config.data, augmentation=Augmentation(flip=False)),
        co_train=configuration.TrainingConfig(epochs=2, batch_size=8, checkpoint_seconds=0.0, patience=1),
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
    subprocess.run(command, check=True, capture_output=True, timeout=300)

    experiment.run(config)
    for name in ("metrics.csv", "results.csv"):
        assert (killed / name).read_text() == (tmp_path / "run" / name).read_text()
    for stage in ("fine_tune/a", "co_train/pgd"):
        paths = [folder / "networks" / stage / "a.keras" for folder in (killed, tmp_path / "run")]
        weights = [keras.saving.load_model(path).get_weights() for path in paths]
        for found, expected in zip(*weights, strict=True):
            np.testing.assert_array_equal(found, expected)
