"""A problem on which honest robustness can be learnt in seconds, and networks that only look robust on it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.attacks import PGD

EPSILON = 0.06
SIZE, CLASSES = 12, 4


def _quadrants(count, seed):
    """A brighter quadrant tells the class, and so does a pattern that is surer, and fainter than epsilon.

    Who learns from clean images learns the pattern too, and falls. Who must withstand epsilon learns the quadrant,
    which withstands it where it stands out by more than twice as much: in seven of ten images.
    """
    generator = np.random.default_rng(seed)
    patterns = np.random.default_rng(0).choice([-0.03, 0.03], [CLASSES, SIZE, SIZE, 3])
    labels = np.arange(count, dtype=np.int32) % CLASSES
    images = 0.45 + patterns[labels] + generator.normal(scale=0.05, size=[count, SIZE, SIZE, 3])
    half = SIZE // 2
    for image, label, contrast in zip(images, labels, generator.uniform(0.05, 0.3, count), strict=True):
        image[half * (label // 2) :, half * (label % 2) :][:half, :half] += contrast
    return np.clip(images, 0, 1).astype(np.float32), labels


def make_small(seed):
    """Two small layers, from images to four logits."""
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [
            keras.Input([SIZE, SIZE, 3]),
            keras.layers.Rescaling(4.0, -2.0),
            keras.layers.Conv2D(16, 3, 3, activation="softplus"),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES),
        ]
    )
    network.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.num_classes = CLASSES
    return network


class Channel:
    """Logits that look at one channel: class 1 where it is bright."""

    num_classes = 2

    def __init__(self, channel):
        self.channel = channel

    def __call__(self, images, training=None):
        brightness = tf.reduce_mean(images[..., self.channel], axis=(1, 2)) - 0.5
        return tf.stack([-brightness, brightness], axis=-1)


class Wrapped:
    """A network with something done to its images or logits."""

    num_classes = CLASSES

    def __init__(self, network, images=lambda x: x, logits=lambda x: x):
        self.network, self.images, self.logits = network, images, logits
        self.fingerprint = repr((id(network), id(images), id(logits)))

    def __call__(self, images, training=None):
        return self.logits(self.network(self.images(images), training=False))


@pytest.fixture(scope="session")
def quadrants():
    """160 images that no network has seen, in batches of 80."""
    return tf.data.Dataset.from_tensor_slices(_quadrants(160, seed=2)).batch(80)


def _trained_on_clean_images(seed):
    images, labels = _quadrants(800, seed=1)
    network = make_small(seed)
    network.fit(images, labels, batch_size=50, epochs=6, verbose=0)
    return network


@pytest.fixture(scope="session")
def undefended():
    """Trained on clean images."""
    return _trained_on_clean_images(1)


@pytest.fixture(scope="session")
def unseen():
    """Trained on clean images from another start."""
    return _trained_on_clean_images(2)


@pytest.fixture(scope="session")
def honest():
    """Trained on its own PGD examples, crafted anew each epoch."""
    images, labels = _quadrants(800, seed=1)
    network = make_small(3)
    craft = PGD(epsilon=EPSILON, steps=7).compiled(network)
    for epoch in range(15):
        network.fit(craft(images, labels, seed=epoch), labels, batch_size=50, verbose=0)
    return network
