"""A small experiment on bright bars in noise, with networks of one layer."""

import dataclasses

import keras
import numpy as np
import pytest

from satm_tf.evaluation import assessment
from satm_tf.experiment import config as configuration
from satm_tf.experiment import cost
from satm_tf.models import register_backbone

SIZE, CLASSES = 16, 3


@register_backbone("tiny_for_experiments", preprocessing={"scale": 2.0, "offset": -1.0}, minimum_size=8)
def tiny(input_shape):
    """A backbone that learns the tests' images within an epoch or two."""
    images = keras.Input(input_shape)
    return keras.Model(images, keras.layers.Conv2D(8, 5, 2, activation="relu")(images))


@pytest.fixture(scope="session")
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


def described(idx_folder, folder):
    """Two networks, a holdout, two schemes, an epoch or two of everything."""
    network = configuration.NetworkConfig("tiny_for_experiments")
    training = configuration.TrainingConfig(epochs=2, batch_size=32, learning_rate=0.01)
    return configuration.Config(
        name="tiny",
        run_dir=str(folder / "run"),
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
        export=configuration.ExportConfig("satm", str(folder / "exported")),
    )


@pytest.fixture
def without_pictures(monkeypatch):
    """Runs write neither a report nor galleries, which have tests of their own."""
    monkeypatch.setattr(assessment.Assessment, "report", lambda self: None)
    monkeypatch.setattr(assessment, "write_galleries", lambda *arguments, **options: None)


@pytest.fixture
def untimed(monkeypatch):
    """A network takes a second an image; that real ones are timed is tested in test_cost.py."""
    monkeypatch.setattr(cost, "time_network", lambda *arguments: cost.Network(1.0, 0.0, 1000))


@pytest.fixture
def config(idx_folder, tmp_path):
    return described(idx_folder, tmp_path)
