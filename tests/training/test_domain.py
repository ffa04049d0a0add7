"""Domain adaptation: gradients against formulas written by hand, and what they do to features."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import DomainAdversarial
from satm_tf.training import DomainAdaptation, DomainDiscriminative, DomainHead, UnifiedEmbedding

BATCH, SIZE, HIDDEN = 6, 4, 5
# Float32 sums of some tens of terms.
TOLERANCE = 1e-6


@pytest.fixture
def features():
    """A function that gives clean features `[6, 4]` and those of k adversarial batches `[k, 6, 4]`."""

    def make(k):
        rng = np.random.default_rng(3)
        clean, adversarial = rng.normal(size=(BATCH, SIZE)), rng.normal(0.5, 1.0, size=(k, BATCH, SIZE))
        return tf.constant(clean, tf.float32), tf.constant(adversarial, tf.float32)

    return make


def head_of(adaptation, sources):
    head = adaptation.head(sources, "domain")
    head.build((None, SIZE))
    for bias in (head.first.bias, head.second.bias):
        bias.assign(np.linspace(-0.2, 0.3, bias.shape[0]))
    return head


def gradients(adaptation, head, clean, adversarial, sources, progress=1.0):
    """Loss `[batch]`, what there is to watch, gradients of the mean loss on features, and those on the head."""
    variables = [v.value for v in head.trainable_variables] if head else []
    with tf.GradientTape() as tape:
        tape.watch([clean, adversarial])
        losses, watched = adaptation.losses(head, clean, adversarial, tf.constant(sources), tf.constant(progress))
        loss = tf.reduce_mean(losses)
    assert set(watched) == set(adaptation.metrics)
    assert {values.shape for values in watched.values()} == {losses.shape} == {(BATCH,)}
    on_features, on_head = tape.gradient(
        loss, [[clean, adversarial], variables], unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return losses, watched, on_features, on_head


def probabilities(weights, x):
    first_kernel, first_bias, second_kernel, second_bias = weights
    outputs = tf.nn.relu(x @ first_kernel + first_bias) @ second_kernel + second_bias
    if outputs.shape[-1] > 1:
        return tf.nn.softmax(outputs)
    adversarial = 1 / (1 + tf.exp(-outputs))
    return tf.concat([1 - adversarial, adversarial], -1)


def assert_close(ours, expected):
    for each, value in zip(ours, expected, strict=True):
        np.testing.assert_allclose(each, value, rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("domains", "count", "sources", "truth"),
    [("two", 1, [0], [1]), ("two", 3, [0, 2], [1, 1]), ("sources", 3, [0, 2], [1, 3]), ("sources", 1, [0], [1])],
)
def test_domain_adversarial_against_the_reversal_by_hand(features, domains, count, sources, truth):
    adaptation = DomainAdversarial(weight=0.3, strength=0.6, hidden=HIDDEN, domains=domains)
    head = head_of(adaptation, count)
    clean, adversarial = features(len(sources))
    losses, watched, on_features, on_head = gradients(adaptation, head, clean, adversarial, sources)

    weights = [tf.Variable(v) for v in head.trainable_variables]
    assert weights[2].shape[-1] == (1 + count if domains == "sources" and count > 1 else 1)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([clean, adversarial])
        on_clean = probabilities(weights, clean)
        on_adversarial = [probabilities(weights, each) for each in tf.unstack(adversarial)]
        expected = -tf.math.log(on_clean[:, 0]) / 2
        for each, domain in zip(on_adversarial, truth, strict=True):
            expected -= tf.math.log(each[:, domain]) / (2 * len(truth))
        loss = 0.3 * tf.reduce_mean(expected)
    assert_close([losses, watched["domain_loss"]], [0.3 * expected, expected])
    assert_close(on_head, tape.gradient(loss, weights))
    assert_close(on_features, [-0.6 * each for each in tape.gradient(loss, [clean, adversarial])])
    hits = (np.argmax(on_clean, -1) == 0) / 2
    for each, domain in zip(on_adversarial, truth, strict=True):
        hits = hits + (np.argmax(each, -1) == domain) / (2 * len(truth))
    assert_close([watched["domain_accuracy"]], [hits])


@pytest.mark.parametrize("sources", [[0], [0, 1]])
def test_domain_discriminative_by_hand(features, sources):
    """The discriminator's gradient ends at the features; that of the inverted label passes it by."""
    adaptation = DomainDiscriminative(weight=0.3, hidden=HIDDEN)
    head = head_of(adaptation, len(sources))
    clean, adversarial = features(len(sources))
    losses, watched, (on_clean, on_adversarial), on_head = gradients(adaptation, head, clean, adversarial, sources)

    weights = [tf.Variable(v) for v in head.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(adversarial)
        taken_for_clean = probabilities(weights, tf.reshape(adversarial, [-1, SIZE]))[:, 0]
        by_image = tf.reshape(taken_for_clean, [len(sources), BATCH])
        told = -tf.math.log(probabilities(weights, clean)[:, 0]) / 2
        told -= tf.reduce_mean(tf.math.log(1 - by_image), 0) / 2
        passed = -tf.reduce_mean(tf.math.log(by_image), 0)
        discriminators, networks = tf.reduce_mean(told), 0.3 * tf.reduce_mean(passed)
    assert_close([losses, watched["domain_loss"], watched["discriminator_loss"]], [0.3 * passed + told, passed, told])
    assert_close(on_head, tape.gradient(discriminators, weights))
    assert_close([on_adversarial], [tape.gradient(networks, adversarial)])
    assert float(tf.reduce_max(tf.abs(on_adversarial))) > 1e-3
    np.testing.assert_array_equal(on_clean, np.zeros([BATCH, SIZE]))


@pytest.mark.parametrize("pivot", [False, True])
def test_unified_embedding_in_closed_form(features, pivot):
    clean, adversarial = features(2)
    adaptation = UnifiedEmbedding(weight=0.3, pivot=pivot)
    assert adaptation.head(2, "none") is None
    losses, watched, (on_clean, on_adversarial), _ = gradients(adaptation, None, clean, adversarial, [0, 1])
    gap = np.array(adversarial) - np.array(clean)
    distances = (gap**2).sum(-1).mean(0)
    assert_close([losses, watched["domain_loss"]], [0.3 * distances, distances])
    # The loss is a mean over two sources and six images.
    assert_close([on_adversarial], [0.3 * 2 * gap / 12])
    assert_close([on_clean], [np.zeros_like(clean) if pivot else -0.3 * 2 * gap.sum(0) / 12])


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 1.0])
def test_ganins_schedule(progress):
    expected = 2 / (1 + math.exp(-10 * progress)) - 1
    assert float(DomainAdversarial().strength_at(tf.constant(progress))) == pytest.approx(expected, abs=1e-6)
    assert float(DomainAdversarial(strength=0.25).strength_at(tf.constant(progress))) == 0.25


@pytest.mark.parametrize(
    ("family", "mistake"),
    [
        (DomainAdversarial, {"weight": -1}),
        (DomainAdversarial, {"strength": "linear"}),
        (DomainAdversarial, {"strength": -0.1}),
        (DomainAdversarial, {"hidden": 0}),
        (DomainAdversarial, {"domains": "three"}),
        (DomainDiscriminative, {"hidden": 0}),
        (DomainDiscriminative, {"weight": -0.1}),
        (UnifiedEmbedding, {"weight": -0.1}),
    ],
)
def test_bad_options(family, mistake):
    with pytest.raises(ValueError, match="Received: "):
        family(**mistake)


def test_an_unfinished_adaptation_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match="implement `losses`"):
        DomainAdaptation().losses(None, tf.zeros([1, 1]), tf.zeros([1, 1, 1]), tf.zeros([1], tf.int32), tf.zeros([]))


def separate(adaptation):
    """Trains a head and the linear map before it on two domains that differ in one feature; domain accuracy, gap."""
    rng = np.random.default_rng(0)
    clean, adversarial = rng.normal(size=(2, 100, SIZE)).astype("float32")
    adversarial[:, 0] += 3
    features = keras.layers.Dense(SIZE, kernel_initializer="identity")
    features.build((None, SIZE))
    head = adaptation.head(1, "domain")
    head.build((None, SIZE))
    optimizer = keras.optimizers.SGD(0.1)
    variables = [*features.trainable_variables, *head.trainable_variables]
    optimizer.build(variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            losses, watched = adaptation.losses(
                head, features(clean), features(adversarial)[None], tf.constant([0]), tf.constant(1.0)
            )
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return tf.reduce_mean(watched["domain_accuracy"])

    for _ in range(150):
        accuracy = step()
    mapped = [np.array(features(x)) for x in (clean, adversarial)]
    gap = np.linalg.norm(mapped[1].mean(0) - mapped[0].mean(0)) / np.concatenate(mapped).std()
    return float(accuracy), gap


def test_heads_tell_domains_apart_and_adaptation_draws_them_together():
    accuracy, gap = separate(DomainAdversarial(weight=1.0, strength=0.0, hidden=8))
    # Means 3 standard deviations apart: the best possible accuracy is Phi(1.5) = 0.933.
    assert accuracy > 0.9
    # The measure is the distance of the two domains' mean features over their standard deviation.
    reversed_accuracy, reversed_gap = separate(DomainAdversarial(weight=1.0, strength=1.0, hidden=8))
    assert reversed_gap < 0.3 * gap
    assert reversed_accuracy < accuracy
    discriminative_accuracy, discriminative_gap = separate(DomainDiscriminative(weight=1.0, hidden=8))
    assert discriminative_gap < 0.3 * gap
    assert discriminative_accuracy < accuracy


@pytest.mark.parametrize("domains", [2, 4])
def test_config_round_trip(domains):
    head = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(DomainHead(7, domains)))
    assert (head.hidden, head.domains) == (7, domains)
    assert head(np.zeros([3, 5], "float32")).shape == (3, domains)
