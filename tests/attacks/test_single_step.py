from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks


@pytest.fixture
def grey() -> np.ndarray:
    """Seven images that no perturbation up to 0.25 takes to the ends of the pixel range."""
    return np.random.default_rng(3).uniform(0.25, 0.75, [7, 8, 8, 3]).astype("float32")


def _gradient(network, images, labels):
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = network(images, training=False)
        loss = tf.keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return tape.gradient(loss, images).numpy()


def test_fgsm_is_its_formula(network, images, labels):
    expected = np.clip(images + 0.1 * np.sign(_gradient(network, images, labels)), 0, 1)
    np.testing.assert_allclose(attacks.FGSM(epsilon=0.1)(network, images, labels), expected, atol=1e-6)


def test_l2_step_is_the_unit_gradient(network, grey, labels):
    gradient = _gradient(network, grey, labels)
    length = np.linalg.norm(gradient.reshape(7, -1), axis=1).reshape(-1, 1, 1, 1)
    adversarial = attacks.FGSM(epsilon=0.2, norm="l2")(network, grey, labels)
    np.testing.assert_allclose(adversarial, grey + 0.2 * gradient / length, atol=1e-6)


def test_target_descends_and_predicted_ascends_the_own_prediction(network, grey, labels):
    toward = attacks.FGSM(epsilon=0.1, label_source="target")(network, grey, labels)
    np.testing.assert_allclose(toward, grey - 0.1 * np.sign(_gradient(network, grey, labels)), atol=1e-6)
    predicted = np.argmax(network(grey, training=False), -1)
    away = attacks.FGSM(epsilon=0.1, label_source="predicted")(network, grey, labels)
    np.testing.assert_allclose(away, grey + 0.1 * np.sign(_gradient(network, grey, predicted)), atol=1e-6)


def test_step_ll_raises_the_least_likely_class(network, images, labels):
    clean = tf.nn.softmax(network(images, training=False)).numpy()
    least = clean.argmin(1)
    attack = attacks.StepLL(epsilon=0.02)
    after = tf.nn.softmax(network(attack(network, images, labels), training=False)).numpy()
    assert np.all(after[range(7), least] > clean[range(7), least])


@pytest.mark.parametrize("label_source", ["least_likely", "label", "predicted"])
def test_randomised_step_moves_each_pixel_by_all_or_nothing(network, grey, labels, label_source):
    epsilon = 16 / 256
    attack = attacks.RandomisedStep(epsilon=epsilon, label_source=label_source)
    moved = attack(network, grey, labels).numpy() - grey
    # The sum of a pixel near 0.75 and a step is rounded twice, each time by at most 2^-25.
    whole = np.round(moved / epsilon)
    np.testing.assert_allclose(moved, whole * epsilon, atol=2e-7)
    shares = [np.mean(whole == step) for step in (-1, 0, 1)]
    # The random sign agrees with the gradient's in half of 1,344 pixels, give or take four deviations of 1.4 %.
    assert abs(shares[1] - 0.5) < 0.055
    assert min(shares) > 0.15
    assert sum(shares) == pytest.approx(1)


def test_randomised_step_is_its_formula(network, images, labels):
    epsilon, alpha = 0.1, 0.03
    noise = np.sign(tf.random.stateless_normal(images.shape, [0, 9]))
    start = np.clip(images + np.float32(alpha) * noise, 0, 1)
    least = np.argmin(network(start, training=False), -1)
    expected = np.clip(start - (epsilon - alpha) * np.sign(_gradient(network, start, least)), 0, 1)
    attack = attacks.RandomisedStep(epsilon=epsilon, alpha=alpha)
    np.testing.assert_allclose(attack(network, images, labels, seed=9), expected, atol=1e-6)


def test_randomised_step_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match=r"alpha must lie in .*alpha=0\.2 with epsilon=0.1"):
        attacks.RandomisedStep(epsilon=0.1, alpha=0.2)
    with pytest.raises(ValueError, match=r"for norm 'linf' only.*'l2'"):
        attacks.RandomisedStep(epsilon=0.1, norm="l2")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fast_gradient_value_keeps_the_proportions_of_the_gradient(network, grey, labels, norm):
    gradient = _gradient(network, grey, labels)
    flat = gradient.reshape(7, -1)
    length = {"linf": np.abs(flat).max(1), "l2": np.linalg.norm(flat, axis=1)}[norm].reshape(-1, 1, 1, 1)
    adversarial = attacks.FastGradientValue(epsilon=0.2, norm=norm)(network, grey, labels)
    np.testing.assert_allclose(adversarial, grey + 0.2 * gradient / length, atol=1e-6)


@pytest.mark.parametrize("label_source", ["label", "target"])
def test_hot_cold_sends_back_plus_the_hot_logit_and_minus_the_cold_one(network, grey, labels, label_source):
    point = tf.constant(grey)
    with tf.GradientTape() as tape:
        tape.watch(point)
        logits = network(point, training=False)
    upstream = np.zeros(logits.shape, "float32")
    for row, (given, values) in enumerate(zip(labels, logits.numpy(), strict=True)):
        other = max((c for c in range(5) if c != given), key=lambda c, values=values: values[c])
        hot, cold = (other, given) if label_source == "label" else (given, other)
        upstream[row, hot], upstream[row, cold] = abs(values[hot]), -abs(values[cold])
    gradient = tape.gradient(logits, point, output_gradients=tf.constant(upstream)).numpy()
    length = np.abs(gradient).max((1, 2, 3), keepdims=True)
    adversarial = attacks.HotCold(epsilon=0.1, label_source=label_source)(network, grey, labels)
    np.testing.assert_allclose(adversarial, grey + 0.1 * gradient / length, atol=1e-6)
