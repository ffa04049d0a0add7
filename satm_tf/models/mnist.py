"""The four MNIST networks of ensemble adversarial training, on which Table 7 of the paper compares.

Each is the published structure up to its last layer, which is the classification layer of `ImageClassifier`, and the
published dropout of 0.5 before it. Images are RGB here, as everywhere in the package, so the first layer has three
times the weights of the published one.

Source:
    Tramèr et al., "Ensemble Adversarial Training: Attacks and Defenses", ICLR 2018, appendix; sizes, paddings, strides
    and activations as in the code published with it (`ensemble-adv-training`, `mnist.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from satm_tf.models.registry import register_backbone

_FACTS = {"pooling": None, "default_size": 28, "minimum_size": 28, "dropout": 0.5}


def _chain(name: str, input_shape: tuple[int, int, int], chain: Sequence[keras.layers.Layer]) -> keras.Model:
    images = x = keras.Input(input_shape)
    for layer in chain:
        x = layer(x)
    return keras.Model(images, x, name=f"{name}_backbone")


@register_backbone("tramer_a", **_FACTS)
def tramer_a(input_shape: tuple[int, int, int]) -> keras.Model:
    """Two 5x5 convolutions and a fully-connected layer; its 128 outputs are the features."""
    return _chain(
        "tramer_a",
        input_shape,
        [
            layers.Conv2D(64, 5, activation="relu"),
            layers.Conv2D(64, 5, activation="relu"),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
        ],
    )


@register_backbone("tramer_b", **_FACTS)
def tramer_b(input_shape: tuple[int, int, int]) -> keras.Model:
    """Dropout on the pixels and three convolutions, two of them strided; the flattened map is the features."""
    return _chain(
        "tramer_b",
        input_shape,
        [
            layers.Dropout(0.2),
            layers.Conv2D(64, 8, strides=2, padding="same", activation="relu"),
            layers.Conv2D(128, 6, strides=2, activation="relu"),
            layers.Conv2D(128, 5, activation="relu"),
            layers.Flatten(),
        ],
    )


@register_backbone("tramer_c", **_FACTS)
def tramer_c(input_shape: tuple[int, int, int]) -> keras.Model:
    """Two 3x3 convolutions and a fully-connected layer; its 128 outputs are the features."""
    return _chain(
        "tramer_c",
        input_shape,
        [
            layers.Conv2D(128, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
        ],
    )


@register_backbone("tramer_d", **_FACTS)
def tramer_d(input_shape: tuple[int, int, int]) -> keras.Model:
    """Four fully-connected layers of 300 with dropout between; the outputs of the last are the features."""
    hidden = [layers.Dense(300, activation="relu", kernel_initializer="he_normal") for _ in range(4)]
    between = [layers.Dropout(0.5) for _ in range(3)]
    chain = [layer for pair in zip(hidden, between, strict=False) for layer in pair]
    return _chain("tramer_d", input_shape, [layers.Flatten(), *chain, hidden[-1]])
