"""A training of a few seconds, for one device or several.

The networks are smooth and so is the attack: a rectifier, or a gradient's sign, would make much of a rounding error now
and then.
"""

import keras
import numpy as np

from satm_tf import CoTraining, ImageClassifier
from satm_tf.attacks import FastGradientValue
from satm_tf.data import Examples, batches
from satm_tf.models.normalization import BatchNormalization

SHAPE = (16, 16, 3)
# Three steps of 8 images, and one of 5 that two replicas cannot halve.
LENGTH, BATCH = 29, 8


def data(length=LENGTH):
    rng = np.random.default_rng(2)
    labels = np.arange(length) % 4
    images = rng.integers(0, 100, (length, *SHAPE))
    images[np.arange(length), labels * 4] += 120  # a bright row, of the class
    return Examples(labels=labels, images=images.astype(np.uint8))


def make_network(name, norm=None, dropout=0.0):
    images = x = keras.Input(SHAPE)
    x = keras.layers.Conv2D(6, 3, 2, use_bias=norm is None, kernel_regularizer="l2")(x)
    x = norm(momentum=0.9)(x) if norm else x
    x = keras.layers.Conv2D(6, 3, 2, activation="tanh")(x)
    return ImageClassifier(keras.Model(images, x), 4, image_shape=SHAPE, dropout=dropout, name=name)


NETWORKS = {"plain": None, "own": BatchNormalization, "keras": keras.layers.BatchNormalization}


def make_trainer(strategy, optimizer, *, norms=NETWORKS, dropout=0.0, **options):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        trainer = CoTraining(
            {name: make_network(name, norm, dropout) for name, norm in norms.items()},
            **{"attack": FastGradientValue(epsilon=0.05), "ordered": True, **options},
        )
        trainer.compile(optimizer())
    return trainer


def fit(trainer, *, epochs=2, callbacks=(), data_set=None):
    """Figures of each epoch, of training and validation."""
    train_data = data_set or batches(data(), image_size=16, batch_size=BATCH, shuffle=True)
    validation = batches(data(), image_size=16, batch_size=BATCH)
    return trainer.fit(
        train_data, validation_data=validation, epochs=epochs, verbose=0, callbacks=list(callbacks)
    ).history


def train(strategy, optimizer, *, epochs=2, data_set=None, **options):
    trainer = make_trainer(strategy, optimizer, **options)
    return trainer, fit(trainer, epochs=epochs, data_set=data_set)
