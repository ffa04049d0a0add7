"""Tramer et al.'s MNIST networks, against the parameter counts of the published structures."""

import numpy as np
import pytest

from satm_tf.models import ImageClassifier


def convolution(filters, size, channels):
    return filters * (size * size * channels + 1)


def dense(inputs, outputs):
    return outputs * (inputs + 1)


# By hand from the published structures, on three channels; a side of 28 becomes 24 and 20 (A), 14, 5 and 1 (B),
# 26 and 24 (C).
COUNTS = {
    "tramer_a": convolution(64, 5, 3) + convolution(64, 5, 64) + dense(20 * 20 * 64, 128) + dense(128, 10),
    "tramer_b": convolution(64, 8, 3) + convolution(128, 6, 64) + convolution(128, 5, 128) + dense(128, 10),
    "tramer_c": convolution(128, 3, 3) + convolution(64, 3, 128) + dense(24 * 24 * 64, 128) + dense(128, 10),
    "tramer_d": dense(28 * 28 * 3, 300) + 3 * dense(300, 300) + dense(300, 10),
}
DROPOUTS = {"tramer_a": [0.25, 0.5], "tramer_b": [0.2, 0.5], "tramer_c": [0.25, 0.5], "tramer_d": [0.5] * 4}


@pytest.mark.parametrize("name", COUNTS)
def test_structure_and_dropout(name):
    network = ImageClassifier.from_backbone(name, num_classes=10)
    assert network.image_shape == (28, 28, 3)
    assert network.count_params() == COUNTS[name]
    inside = [layer.rate for layer in network.backbone.layers if type(layer).__name__ == "Dropout"]
    assert [*inside, network.dropout] == DROPOUTS[name]
    images = np.random.default_rng(0).random((4, 28, 28, 3)).astype("float32")
    np.testing.assert_array_equal(network(images, training=False), network(images))
    assert np.any(network(images, training=True) != network(images))  # dropout inside the backbone and before the head


def test_the_published_dropout_gives_way_to_the_users():
    assert ImageClassifier.from_backbone("tramer_d", num_classes=10, dropout=0.0).dropout == 0.0
