"""Freezing and thawing a backbone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.models import ImageClassifier, compact

IMAGES = np.random.default_rng(0).random((8, 16, 16, 3)).astype("float32")
LABELS = np.arange(8) % 2


@pytest.fixture
def network():
    backbone = compact.compact_resnet((16, 16, 3), widths=(4, 6))
    return ImageClassifier(backbone, 2, image_shape=(16, 16, 3), name="small")


def values(network):
    return {weight.path: weight.numpy() for weight in network.weights}


def train(network):
    """The names of the weights that two epochs change."""
    before = values(network)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)  # tracing would take most of the time
    network.fit(IMAGES, LABELS, epochs=2, verbose=0)
    return {path for path, value in values(network).items() if not np.array_equal(value, before[path])}


def weights_of(network, layers):
    return {weight.path for layer in layers for weight in layer.weights}


def test_a_fresh_network_trains_whole(network):
    assert train(network) == set(values(network))


def test_a_frozen_backbone_changes_in_nothing_not_in_batch_statistics_either(network):
    network.freeze_backbone()
    assert train(network) == weights_of(network, [network.get_layer("classification")])


def test_a_frozen_backbone_computes_in_training_what_it_computes_in_inference(network):
    assert np.any(network.features(IMAGES, training=True) != network.features(IMAGES, training=False))
    network.freeze_backbone()
    np.testing.assert_array_equal(network.features(IMAGES, training=True), network.features(IMAGES, training=False))


@pytest.mark.parametrize("index", [0, 8, -3])
def test_training_starts_at_the_layer_named(network, index):
    layers = network.backbone.layers
    start = layers.index([layer for layer in layers if layer.weights][index])
    network.fine_tune_from(layers[start].name)
    expected = weights_of(network, [*layers[start:], network.get_layer("classification")])
    assert train(network) == expected


def test_batch_normalisation_may_stay_frozen(network):
    convolutions = [layer for layer in network.backbone.layers if isinstance(layer, keras.layers.Conv2D)]
    network.fine_tune_from(convolutions[2].name, freeze_batch_norm=True)
    assert train(network) == weights_of(network, [*convolutions[2:], network.get_layer("classification")])


def test_thawing_after_freezing_trains_again(network):
    network.freeze_backbone()
    network.fine_tune_from(network.backbone.layers[0].name)
    assert train(network) == set(values(network))


def test_what_is_frozen_stays_frozen_through_a_file(network, tmp_path):
    network.fine_tune_from(network.backbone.layers[10].name)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    trained = [layer.trainable for layer in network.backbone.layers if layer.weights]
    assert [layer.trainable for layer in loaded.backbone.layers if layer.weights] == trained
    assert len(set(trained)) == 2


def test_gradients_reach_the_images_through_a_frozen_backbone(network):
    """A frozen network is still a source of adversarial examples."""
    network.freeze_backbone()
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(network(images)[:, 0])
    assert np.count_nonzero(tape.gradient(loss, images)) > IMAGES.size / 2


def test_an_unknown_layer_is_refused_with_the_nearest(network):
    name = network.backbone.layers[1].name
    with pytest.raises(ValueError, match=rf"layer of 'small'. Did you mean '{name}'.*Received: '{name}-'"):
        network.fine_tune_from(f"{name}-")
