"""A network whose features are known, clean images, and adversarial ones that differ from them in a known way."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

from satm_tf import ImageClassifier

SHAPE = (4, 4, 3)


class Case(NamedTuple):
    """A network and images for its detectors, all float32 `[images, 4, 4, 3]`."""

    network: Any
    clean: np.ndarray
    adversarial: np.ndarray
    validation: np.ndarray


def build_network(seed: int = 0) -> ImageClassifier:
    """A smooth network of three classes with six features."""
    keras.utils.set_random_seed(seed)
    images = keras.Input(SHAPE)
    features = keras.layers.Dense(6, activation="tanh")(keras.layers.Flatten()(images))
    return ImageClassifier(keras.Model(images, features, name="backbone"), 3, image_shape=SHAPE, pooling=None)


@pytest.fixture(scope="session")
def case() -> Case:
    """Clean images are dark on the left and bright on the right; adversarial ones the other way about."""
    random = np.random.default_rng(0)

    def draw(count, low, high):
        side = np.linspace(low, high, 4)[:, None]
        return np.clip(side + random.normal(0, 0.1, (count, *SHAPE)), 0, 1).astype("float32")

    return Case(build_network(), draw(120, 0.2, 0.8), draw(120, 0.8, 0.2), draw(100, 0.2, 0.8))
