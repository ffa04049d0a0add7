import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import DomainAdversarial
from satm_tf.training import DomainHead


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 1.0])
def test_ganins_schedule(progress):
    expected = 2 / (1 + math.exp(-10 * progress)) - 1
    assert float(DomainAdversarial().strength_at(tf.constant(progress))) == pytest.approx(expected, abs=1e-6)


def test_constant_strength():
    assert float(DomainAdversarial(strength=0.25).strength_at(tf.constant(0.0))) == 0.25


@pytest.mark.parametrize("options", [{"weight": -1}, {"strength": "linear"}, {"strength": -0.1}, {"hidden": 0}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="Received: "):
        DomainAdversarial(**options)


def separate(reversed_strength):
    """Trains a head and the linear map before it on two domains that differ in one feature; domain accuracy, gap."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    domain = (np.arange(200) % 2).astype(np.float32)
    x[:, 0] += 3 * domain
    features = keras.layers.Dense(4, kernel_initializer="identity")
    head = DomainHead(8)
    head(features(x))
    optimizer = keras.optimizers.SGD(0.1)
    variables = [*features.trainable_variables, *head.trainable_variables]
    for _ in range(150):
        with tf.GradientTape() as tape:
            logits = head(features(x), strength=reversed_strength)[:, 0]
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(domain, logits))
        optimizer.apply(tape.gradient(loss, variables), variables)
    mapped = np.asarray(features(x))
    gap = np.linalg.norm(mapped[domain == 1].mean(0) - mapped[domain == 0].mean(0)) / mapped.std()
    return np.mean((np.asarray(logits) > 0) == (domain > 0)), gap


def test_head_tells_domains_apart_and_reversal_draws_them_together():
    accuracy, gap = separate(0.0)
    # Means 3 standard deviations apart: the best possible accuracy is Phi(1.5) = 0.933.
    assert accuracy > 0.9
    # The measure is the distance of the two domains' mean features over their standard deviation.
    _, reversed_gap = separate(1.0)
    assert reversed_gap < 0.3 * gap


def test_config_round_trip():
    head = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(DomainHead(7)))
    assert head.hidden == 7
