"""One stage: what stops it, and what it leaves. That it resumes to the bit is in test_running.py."""

import dataclasses
import shutil

import keras
import numpy as np
import pandas as pd
import pytest

from satm_tf import experiment
from satm_tf.experiment import Stage, cost
from satm_tf.experiment import config as configuration
from satm_tf.experiment.images import Sizes
from satm_tf.models import register_backbone, registry


def test_a_loss_that_is_no_number_stops_the_run(config, tmp_path):
    diverging = configuration.TrainingConfig(epochs=3, batch_size=32, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"clean_loss of a is not a finite number at step [1-9]"):
        experiment.run(dataclasses.replace(config, fine_tune=diverging))
    assert not (tmp_path / "run" / "networks" / "fine_tune" / "a").exists()


def test_a_finished_stage_leaves_its_networks_epochs_and_weights_and_no_checkpoint(config, capsys):
    wanted = Stage("fine_tune", "c")
    assert len(experiment.train(config, [wanted]).test) == 60
    folder = config.folder
    assert sorted(path.name for path in folder.networks(wanted).iterdir()) == [
        folder.network(wanted, "c").name, folder.history(wanted).name, folder.initial_weights(wanted).name,
    ]  # fmt: skip
    assert not folder.checkpoints(wanted).exists()
    history = pd.read_csv(folder.history(wanted))
    pd.testing.assert_frame_equal(pd.read_csv(folder.metrics)[history.columns], history)
    assert np.isfinite(history.loss).all()
    assert "fine_tune/c: 2 epochs" in capsys.readouterr().out
    assert [stage for stage in config.stages() if folder.networks(stage).exists()] == [wanted]


def test_folded_weights_start_from_the_statistics_of_the_training_images(config, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))

    @register_backbone("folded_for_stages", minimum_size=8, folded=True)
    def folded(input_shape):
        images = keras.Input(input_shape)
        x = keras.layers.Conv2D(4, 5, 2)(images)
        return keras.Model(images, keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm", momentum=1.0)(x)))

    folded((16, 16, 3)).save_weights(tmp_path / "folded.weights.h5")
    network = configuration.NetworkConfig("folded_for_stages", weights=str(tmp_path / "folded.weights.h5"))
    networks = {**config.networks, "a": network, "b": dataclasses.replace(network, weights=None)}
    config = dataclasses.replace(config, networks=networks)
    started = {}
    for name in "ab":
        experiment.train(config, [Stage("fine_tune", name)])
        norm = config.folder.load(Stage("fine_tune", name), name).backbone.get_layer("norm")
        started[name] = norm.moving_mean.numpy()  # a momentum of 1 keeps the start
    assert np.abs(started["a"]).min() > 1e-3
    assert np.all(started["b"] == 0)


def test_the_examples_of_frozen_networks_are_crafted_once(config, capsys):
    """As many files as the scheme says; a stage that is trained again uses them, and ends with the same weights."""
    pubdef = configuration.SchemeConfig(preset="pubdef", attack={"name": "pgd", "steps": 2}, crafted_once=2)
    config = dataclasses.replace(
        config,
        schemes={"pubdef": pubdef},
        checks=configuration.ChecksConfig(),
        export=configuration.ExportConfig(),
    )
    stage = Stage("co_train", "pubdef")

    def train():
        experiment.train(config, [stage])
        stamps = {path.name: path.stat().st_mtime_ns for path in config.folder.crafted.glob("*.npy")}
        return stamps, config.folder.load(stage, "a").get_weights()

    stamps, weights = train()
    assert len(stamps) == 2 * (2 + 1), "of two networks, two copies to train on and one to validate with"
    size = sum(path.stat().st_size for path in config.folder.crafted.glob("*.npy"))
    pixels = 2 * (2 * 162 + 18) * 16 * 16 * 3
    assert pixels == cost.crafted_bytes(config, "pubdef", Sizes(162, 18, 60)) == size - 128 * len(stamps)
    assert "co_train/pubdef: crafting the examples of its sources once" in capsys.readouterr().out
    shutil.rmtree(config.folder.networks(stage))
    again, resumed = train()
    assert again == stamps
    for found, expected in zip(resumed, weights, strict=True):
        np.testing.assert_array_equal(found, expected)
