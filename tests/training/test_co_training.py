"""`CoTraining` as a whole: equal to plain `fit`, repeatable, and its parameters."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining, DomainAdversarial
from satm_tf.attacks import RandomisedStep
from satm_tf.training import SCHEMES, Scheme, UniformEpsilon
from tests.training.by_hand import EPSILON


def test_learning_from_nobody_equals_plain_fit_with_class_weights(make_network, images, labels):
    a, plain = make_network("a", batch_norm=True), make_network("plain", batch_norm=True)
    plain.set_weights(a.get_weights())
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)
    trainer = CoTraining({"a": a}, learns_from="nobody")
    trainer.compile(keras.optimizers.SGD(0.05))
    plain.compile(keras.optimizers.SGD(0.05), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ours, theirs = (
        model.fit(
            dataset,
            epochs=3,
            verbose=0,
            shuffle=False,
            validation_data=dataset,
            class_weight={0: 0.1, 1: 2.0, 2: 1.0, 3: 3.0},
        )
        for model in (trainer, plain)
    )
    for variable, value in zip(a.weights, plain.weights, strict=True):
        # Float32 sums over 12 images in another order.
        np.testing.assert_allclose(variable, value, rtol=0, atol=2e-6, err_msg=variable.path)
    np.testing.assert_allclose(ours.history["val_loss"], theirs.history["val_loss"], rtol=1e-5)
    np.testing.assert_allclose(ours.history["loss"], theirs.history["loss"], rtol=1e-5)


def test_crafting_and_validating_leave_no_trace(make_network, images, labels, arrays):
    networks = {"a": make_network("a", batch_norm=True, dropout=0.5), "b": make_network("b", dropout=0.5)}
    trainer = CoTraining(
        networks, attack=RandomisedStep(epsilon=EPSILON), domain_adaptation=DomainAdversarial(hidden=4)
    )
    trainer.compile("sgd")
    state = [arrays(network) for network in networks.values()]
    first = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    second = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    assert first == second
    for network, before in zip(networks.values(), state, strict=True):
        for old, new in zip(before, arrays(network), strict=True):
            np.testing.assert_array_equal(old, new)


def test_the_same_seed_gives_the_same_network(make_network, images, labels):
    def train(seed):
        keras.utils.set_random_seed(5)
        network = make_network("a", dropout=0.3, batch_norm=True)
        trainer = CoTraining({"a": network}, learns_from="itself", attack=RandomisedStep(epsilon=EPSILON), seed=seed)
        trainer.compile("adam")
        trainer.fit(images, labels, batch_size=6, verbose=0, shuffle=False)
        return np.concatenate([np.ravel(w) for w in network.get_weights()])

    first = train(1)
    np.testing.assert_array_equal(first, train(1))
    assert np.abs(first - train(2)).max() > 0


def test_the_example_of_the_design(make_network):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    trainer = CoTraining(networks, "recommended", epsilon=8 / 255)
    assert trainer.scheme == Scheme.get("recommended", epsilon=8 / 255)


def test_none_keeps_the_schemes_own_and_a_word_says_none(make_network):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    assert CoTraining(networks, "satm").scheme == SCHEMES["satm"]
    without = CoTraining(networks, Scheme.get("satm", epsilon_schedule="uniform"), domain_adaptation="none")
    assert (without.scheme.domain_adaptation, without.scheme.epsilon_schedule) == (None, UniformEpsilon())
    assert without.domain_heads == {}
    assert CoTraining(networks, without.scheme, epsilon_schedule="none").scheme == Scheme(learns_from="others")
    one = CoTraining(networks, "satm", domain_adaptation={"a": DomainAdversarial(hidden=4), "b": "none"})
    assert list(one.domain_heads) == ["a"]


def test_a_parameter_of_each_field_of_a_scheme(make_network):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    fields = {
        "learns_from": "itself",
        "attack": "pgd",
        "epsilon": 0.1,
        "epsilon_schedule": "uniform",
        "mixing": "all",
        "source_weights": {"itself": 2.0},
        "snapshots": 2,
        "snapshot_steps": 7,
        "pairing_weight": 0.1,
        "crafting_mode": "training",
        "clean_weight": 0.5,
        "adversarial_weight": 0.0,
        "adversarial_loss": "divergence",
        "peer_weight": 0.25,
        "gradient_penalty": 0.01,
        "penalty_norm": "l2",
        "teachers": "before",
        "teacher_weight": 0.5,
        "temperature": 2.0,
        "null_share": 0.0,
        "domain_adaptation": "domain_adversarial",
        "batch_norm": "frozen",
        "crafted_once": 0,
    }
    assert set(fields) == set(Scheme.__dataclass_fields__)
    assert CoTraining(networks, "cascade", **fields).scheme == Scheme.get("cascade", **fields) == Scheme(**fields)
    with pytest.raises(TypeError, match="domain_adaption"):
        CoTraining(networks, "satm", domain_adaption="none")
