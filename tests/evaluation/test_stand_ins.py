"""Networks of one architecture share one compiled function, and get the answers of their own weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.attacks import FGSM
from satm_tf.evaluation import measure
from satm_tf.evaluation.stand_ins import StandIns
from satm_tf.models import ImageClassifier, load_model


@pytest.fixture
def networks(make_network):
    return {"a": make_network(), "b": make_network(), "dropout": make_network(dropout=0.5)}


@pytest.mark.parametrize("wrap", [lambda network: network, load_model])
def test_each_architecture_is_made_once_and_answers_with_each_network_s_weights(networks, images, wrap):
    networks = {name: wrap(network) for name, network in networks.items()}
    made = []

    def make(network):
        made.append(network)
        return tf.function(lambda images: network(images, training=False))

    stand_ins = StandIns([*networks.values(), len])
    before = {name: network(images).numpy() for name, network in networks.items()}
    for _ in range(2):
        for name, network in networks.items():
            answers = stand_ins.compiled("answers", make, network)(images)
            np.testing.assert_allclose(answers, before[name], atol=1e-6, err_msg=name)
    assert len(made) == 2
    assert made[1] is networks["dropout"], "no other has its architecture"
    assert made[0] is not networks["a"], "a network is not changed"
    for name, network in networks.items():
        np.testing.assert_array_equal(network(images), before[name])
    assert stand_ins.compiled("others", lambda network: network, len) is len


def test_networks_that_keras_cannot_copy_are_used_themselves(images):
    class Unregistered(keras.layers.Layer):
        def call(self, x):
            return x

    def make():
        inputs = keras.Input(images.shape[1:])
        return ImageClassifier(keras.Model(inputs, Unregistered()(inputs)), 4, image_shape=images.shape[1:])

    networks = [make(), make()]
    stand_ins = StandIns(networks)
    assert [stand_ins.compiled("itself", lambda network: network, each) for each in networks] == networks


def test_layers_that_are_named_after_what_they_do_are_not_taken_for_each_other(images):
    def make(activation):
        x = inputs = keras.Input(images.shape[1:])
        x = keras.layers.Activation(activation, name=activation)(x)
        return ImageClassifier(keras.Model(inputs, x), 4, image_shape=images.shape[1:])

    networks = [make("relu"), make("tanh"), make("tanh")]
    stand_ins = StandIns(networks)
    used = [stand_ins.compiled("itself", lambda network: network.__call__, each) for each in networks]
    for network, call in zip(networks, used, strict=True):
        np.testing.assert_allclose(call(images), network(images), atol=1e-6)


def test_networks_of_another_precision_are_not_taken_for_each_other(images):
    def make(policy):
        inputs = keras.Input(images.shape[1:])
        x = keras.layers.Conv2D(4, 3, name="conv", dtype=policy)(inputs)
        return ImageClassifier(keras.Model(inputs, x), 4, image_shape=images.shape[1:])

    networks = [make("float32"), make("float32"), make("mixed_bfloat16")]
    stand_ins = StandIns(networks)
    used = [stand_ins.compiled("itself", lambda network: network, each) for each in networks]
    assert used[2] is networks[2], "no other has its architecture"
    assert used[0] is not networks[0]


def test_networks_with_another_range_are_not_taken_for_each_other(make_network, images):
    networks = [load_model(make_network(), input_range=bounds) for bounds in ((0, 1), (0, 1), (-1, 1))]
    stand_ins = StandIns(networks)
    for network in networks:
        call = stand_ins.compiled("itself", lambda each: each.__call__, network)
        np.testing.assert_allclose(call(images), network(images), atol=1e-6)


def test_a_matrix_is_that_of_networks_that_craft_for_themselves(networks, images, labels, monkeypatch):
    traced = []

    class Counting(FGSM):
        def perturb(self, *args):
            traced.append(args[0])
            return super().perturb(*args)

    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)
    options = {"targets": networks, "dataset": dataset, "attacks": {"x": Counting(epsilon=0.1)}}
    together = measure(sources=networks, **options)
    assert len(traced) == 2
    for name, network in networks.items():
        alone = measure(sources={name: network}, **options)
        for target in networks:
            np.testing.assert_array_equal(
                together.row("x", 0.1, name, target), alone.row("x", 0.1, name, target), err_msg=f"{name}, {target}"
            )
    rows = [together.row("x", 0.1, name, name) for name in ("a", "b")]
    assert not np.array_equal(*rows), "two networks that answer alike prove nothing"
