"""One small network and one export of it, shared by all tests of this room that only read."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from satm_tf import ImageClassifier, detection
from satm_tf.models import Preprocessing
from satm_tf.serving import Client, export_saved_model
from tests.serving.raw_server import RawServer, Script

SHAPE = (16, 16, 3)
LABELS = ["infant", "child", "adult", "Älteste"]


def build_network(seed: int = 0) -> ImageClassifier:
    """A network whose classes differ clearly from image to image, with batch statistics of its own."""
    keras.utils.set_random_seed(seed)
    images = x = keras.Input(SHAPE)
    x = keras.layers.Conv2D(6, 3, 2, padding="same", activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    network = ImageClassifier(
        keras.Model(images, x, name="backbone"),
        len(LABELS),
        image_shape=SHAPE,
        preprocessing=Preprocessing(scale=2.0, offset=-1.0),
        pooling="flatten",
        dropout=0.5,
        name="network",
    )
    network(np.random.default_rng(0).uniform(size=(8, *SHAPE)).astype("float32"), training=True)
    for weights in network._classification.trainable_weights:
        weights.assign(8 * weights)
    return network


@dataclass(frozen=True)
class Exported:
    """A network, the folder of its first version, and what the network answers, computed in NumPy from its logits."""

    network: Any
    folder: Path

    def probabilities(self, images) -> np.ndarray:
        """float64 `[batch, classes]`."""
        logits = np.asarray(self.network(tf.constant(images, tf.float32), training=False), np.float64)
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    """The version 1 of a model called "faces", to read from only."""
    network = build_network()
    folder = export_saved_model(network, tmp_path_factory.mktemp("exported") / "faces", labels=LABELS)
    return Exported(network, folder)


@pytest.fixture(scope="session")
def detector(exported, pixels):
    """Of bright images, fitted to that network."""
    images = np.random.default_rng(6).uniform(0, 0.5, (40, *SHAPE)).astype("float32")
    kind = detection.get("feature_classifier", hidden=4)
    return kind.fit(exported.network, images[:20], images[:20] + 0.5, validation=images[20:])


@pytest.fixture(scope="session")
def detected(exported, detector, tmp_path_factory) -> Exported:
    """The same network exported with a detector, to read from only."""
    folder = tmp_path_factory.mktemp("detected") / "faces"
    measured = {"attack": "a | b", "images": 9, "auc": 0.5, "clean_rejected": 0.1, "adversarial_rejected": 0.2}
    detector.rates["measured"] = [{**measured, "clean_accuracy": 0.7, "held": 0.25}]
    return Exported(exported.network, export_saved_model(exported.network, folder, labels=LABELS, detector=detector))


@dataclass
class Server:
    """The addresses of the test double, and the folder that it polls."""

    folder: Path
    grpc: str
    rest: str

    def asked(self) -> int:
        """How many predictions it has been asked for."""
        with urlopen(f"http://{self.rest}/count", data=b"") as answer:
            return json.load(answer)["asked"]

    def fail(self, count: int) -> None:
        """Lets it refuse or break off so many requests by REST."""
        urlopen(f"http://{self.rest}/break/{count}", data=b"").close()

    def client(self, transport, **options):
        return Client(getattr(self, transport), "faces", transport=transport, **options)


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    """The test double, in a process of its own, with a copy of the shared export."""
    folder = tmp_path_factory.mktemp("polled")
    shutil.copytree(exported.folder.parent, folder / "faces")
    double = Path(__file__).with_name("server_double.py")
    process = subprocess.Popen([sys.executable, double, folder], stdout=subprocess.PIPE, text=True)
    ports = process.stdout.readline().split()
    yield Server(folder, *(f"127.0.0.1:{port}" for port in ports))
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def served(exported):
    """The signatures of that export, loaded."""
    loaded = tf.saved_model.load(str(exported.folder))
    yield loaded.signatures
    del loaded  # the variables live as long as it does


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """uint8 `[6, 16, 16, 3]`."""
    return np.random.default_rng(5).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="session")
def encode():
    """A function that gives the bytes of an image file of uint8 pixels or a Pillow image."""

    def run(image, kind: str = "PNG", **options: Any) -> bytes:
        file = io.BytesIO()
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(file, kind, **options)
        return file.getvalue()

    return run


@pytest.fixture
def raw_server():
    """A factory of servers that send given pieces to whoever connects, and hang up; it gives a server's address."""
    with contextlib.ExitStack() as servers:
        yield lambda pieces, pause=0.0: servers.enter_context(RawServer(Script(pieces, pause))).url
