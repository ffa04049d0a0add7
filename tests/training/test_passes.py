"""How clean and adversarial images share batch normalisation, against passes made one by one with Keras."""

from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining, ImageClassifier
from satm_tf.attacks import FGSM, PGD
from satm_tf.training.passes import BatchNormMode, forward, in_training_mode

MODES = get_args(BatchNormMode)
EPSILON, RATE = 0.1, 0.1
ATTACK = FGSM(epsilon=EPSILON)
# Float32 sums over a batch in another order.
TOLERANCE = 2e-6


@pytest.fixture
def make(make_network):
    """A function that makes the same network again: with batch normalisation whose statistics differ from a batch's."""

    def one(dropout=0.0):
        keras.utils.set_random_seed(8)
        network = make_network("a", batch_norm=True, dropout=dropout)
        norm = network.backbone.get_layer("norm")
        norm.moving_mean.assign(np.linspace(-0.3, 0.3, 6))
        norm.moving_variance.assign(np.linspace(0.5, 2.0, 6))
        return network

    return one


def norm(network):
    return network.backbone.get_layer("norm")


def cross_entropy(labels, logits):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)


def take_a_step(network, images, labels, mode):
    trainer = CoTraining({"a": network}, learns_from="itself", attack=ATTACK, batch_norm=mode)
    trainer.compile(keras.optimizers.SGD(RATE))
    trainer.train_on_batch(images, labels)
    return trainer


def assert_close(ours, expected):
    for variable, value in zip(ours, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=0, atol=TOLERANCE, err_msg=variable.path)


def descend(network, loss_of, variables=None):
    """One step of plain gradient descent."""
    variables = network.trainable_variables if variables is None else variables
    with tf.GradientTape() as tape:
        loss = loss_of()
    for variable, gradient in zip(variables, tape.gradient(loss, [v.value for v in variables]), strict=True):
        variable.assign_sub(RATE * gradient)


# The loss of a network on clean and adversarial images. Without dropout, a network whose batch normalisation is frozen
# is one in inference mode whose weights all train.
LOSSES = {
    "shared": lambda network, labels, *both: (
        2 * cross_entropy(np.concatenate([labels, labels]), network(tf.concat(both, 0), training=True))
    ),
    "separate": lambda network, labels, *both: sum(cross_entropy(labels, network(x, training=True)) for x in both),
    "frozen": lambda network, labels, *both: sum(cross_entropy(labels, network(x, training=False)) for x in both),
}


@pytest.mark.parametrize("mode", LOSSES)
def test_a_step_of_each_mode(make, images, labels, mode):
    network, expected, before = make(), make(), make()
    adversarial = ATTACK(expected, images, labels)
    take_a_step(network, images, labels, mode)
    descend(expected, lambda: LOSSES[mode](expected, labels, images, adversarial))
    assert_close(network.weights, expected.weights)
    pairs = zip(norm(network).weights, norm(before).weights, strict=True)
    changed = [np.abs(np.array(new) - np.array(old)).max() for new, old in pairs]
    assert min(changed[:2]) > 1e-4, "scale and shift"
    assert (max(changed[2:]) == 0) == (mode == "frozen"), "moving statistics"
    assert norm(network).trainable, "the layer keeps its settings"


def test_frozen_is_for_a_network_that_learns_from_nobody_too(make, images, labels):
    network, expected = make(), make()
    trainer = CoTraining({"a": network}, "undefended", batch_norm="frozen")
    trainer.compile(keras.optimizers.SGD(RATE))
    trainer.train_on_batch(images, labels)
    descend(expected, lambda: cross_entropy(labels, expected(images, training=False)))
    assert_close(network.weights, expected.weights)


def test_auxiliary_gives_adversarial_images_a_second_batch_normalisation(make, images, labels):
    """Two networks that share all but it, by hand: their common weights get the sum of both gradients."""
    network, clean, second = make(), make(), make()
    adversarial = ATTACK(clean, images, labels)
    trainer = take_a_step(network, images, labels, "auxiliary")
    with tf.GradientTape() as tape:
        losses = [
            cross_entropy(labels, clean(images, training=True)),
            cross_entropy(labels, second(adversarial, training=True)),
        ]
    variables = [[v.value for v in each.trainable_variables] for each in (clean, second)]
    gradients = tape.gradient(losses, variables)
    own = {id(v) for v in norm(clean).weights} | {id(v) for v in norm(second).weights}
    for first, other, g, h in zip(clean.trainable_variables, second.trainable_variables, *gradients, strict=True):
        shared = id(first) not in own
        first.assign_sub(RATE * (g + h if shared else g))
        other.assign_sub(RATE * h)
    assert_close(network.weights, clean.weights)
    counterparts = [copy for _, copy in trainer._objectives["a"].auxiliary]
    assert_close(counterparts, norm(second).weights)
    gaps = [np.abs(np.array(a) - np.array(b)).max() for a, b in zip(counterparts, norm(network).weights, strict=True)]
    assert min(gaps) > 10 * TOLERANCE, "each of the four differs from its counterpart"


def test_auxiliary_statistics_go_on_from_step_to_step(make, images, labels):
    network = make()
    trainer = CoTraining({"a": network}, learns_from="itself", attack=ATTACK, batch_norm="auxiliary")
    trainer.compile(keras.optimizers.SGD(0.0))
    mean, counterpart = norm(network).moving_mean, trainer._objectives["a"].auxiliary[2][1]
    first = keras.Model(network.backbone.inputs, network.backbone.get_layer("first").output)

    def after_a_step(old, x):
        return 0.99 * np.array(old) + 0.01 * np.array(first(network.preprocessing(x))).mean((0, 1, 2))

    for _ in range(3):
        adversarial = ATTACK(network, images, labels)
        expected = after_a_step(mean, images), after_a_step(counterpart, adversarial)
        trainer.train_on_batch(images, labels)
        assert_close([mean, counterpart], expected)


def test_the_second_of_separate_passes_drops_otherwise(make, images):
    network = make(dropout=0.5)
    logits = forward(network, [images, images], training=True, mode="separate").logits
    assert np.abs(logits[0] - logits[1]).max() > 0.01


@pytest.mark.parametrize("mode", MODES)
def test_a_pass_holds_its_updates_back(make, images, arrays, mode):
    network = make(dropout=0.5)
    before = arrays(network)
    passed = forward(network, [images, images**2], training=True, mode=mode)
    for old, new in zip(before, arrays(network), strict=True):
        np.testing.assert_array_equal(old, new)
    updates = {variable.name: value for variable, value in passed.updates}
    statistics = set() if mode == "frozen" else {"moving_mean", "moving_variance"}
    assert updates.keys() == {"seed_generator_state"} | statistics
    # Dropout's seed is where as many passes of Keras leave it.
    reference = make(dropout=0.5)
    for _ in range(2 if mode in ("separate", "auxiliary") else 1):
        reference(images, training=True)
    (seed,) = [v for v in reference.variables if v.name == "seed_generator_state"]
    np.testing.assert_array_equal(updates["seed_generator_state"], seed)


@pytest.mark.parametrize("mode", MODES)
def test_in_inference_mode_the_mode_makes_no_difference(make, images, mode):
    network = make(dropout=0.5)
    passed = forward(network, [images, images**2], training=False, mode=mode)
    np.testing.assert_allclose(passed.logits[1], network(images**2, training=False), atol=TOLERANCE)
    assert passed.updates == []


def test_losses_of_layers_are_part_of_the_networks(images, labels):
    """Weight decay by regularisation and a penalty on activity, as Keras's own `fit` counts them."""

    def one():
        keras.utils.set_random_seed(3)
        inputs = keras.Input(images.shape[1:])
        x = keras.layers.Conv2D(3, 3, 2, kernel_regularizer=keras.regularizers.L2(0.1))(inputs)
        x = keras.layers.Conv2D(3, 3, 2, activity_regularizer=keras.regularizers.L2(0.01))(x)
        return ImageClassifier(keras.Model(inputs, x), 4, image_shape=images.shape[1:])

    network, expected = one(), one()
    trainer = CoTraining({"a": network}, learns_from="itself", attack=PGD(epsilon=EPSILON, steps=2))
    adversarial = trainer.scheme.attack.compiled(expected)(images, labels, seed=numbers(0))
    trainer.compile(keras.optimizers.SGD(RATE))
    reported = trainer.train_on_batch(images, labels, return_dict=True)

    def whole():
        logits = expected(tf.concat([images, adversarial], 0), training=True)
        return 2 * cross_entropy(np.concatenate([labels, labels]), logits) + tf.add_n(expected.losses)

    assert reported["a_loss"] == pytest.approx(float(whole()), rel=1e-5)
    assert len(expected.losses) == 2
    descend(expected, whole)
    assert_close(network.weights, expected.weights)


def numbers(step):
    """The random numbers' seed of the first source in a step of a trainer with seed 0."""
    fold_in = tf.random.experimental.stateless_fold_in
    return fold_in(fold_in([0, 0], tf.constant(step, tf.int64)), 0)


@pytest.mark.parametrize("attack", [ATTACK, PGD(epsilon=EPSILON, steps=3)], ids=["one step", "iterative"])
def test_crafting_in_training_mode_leaves_no_trace_and_differs_from_inference(make, images, labels, arrays, attack):
    network = make(dropout=0.5)
    before = arrays(network)
    seed = numbers(0)
    training = attack.compiled(in_training_mode(network))(images, labels, seed=seed)
    inference = attack.compiled(network)(images, labels, seed=seed)
    for old, new in zip(before, arrays(network), strict=True):
        np.testing.assert_array_equal(old, new)
    assert np.mean(np.abs(training - inference) > 0.01) > 0.02
    # By hand: what an attack makes of a copy in training mode, whose statistics and seeds nobody misses.
    if isinstance(attack, FGSM):
        other = make(dropout=0.5)
        x = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = cross_entropy(labels, other(x, training=True))
        expected = np.clip(images + EPSILON * np.sign(tape.gradient(loss, x)), 0, 1)
        assert np.mean(np.isclose(training, expected, atol=1e-5)) > 0.999  # but for gradients of all but zero


def test_a_step_that_crafts_in_training_mode(make, images, labels):
    """The step's only trace is that of its own pass, with images crafted by hand in training mode."""
    attack = PGD(epsilon=EPSILON, steps=3)
    network, expected, inference = make(dropout=0.5), make(dropout=0.5), make(dropout=0.5)
    for each, mode in ((network, "training"), (inference, "inference")):
        trainer = CoTraining({"a": each}, learns_from="itself", attack=attack, crafting_mode=mode)
        trainer.compile(keras.optimizers.SGD(RATE))
        trainer.fit(images, labels, batch_size=12, verbose=0, shuffle=False)
    source = make(dropout=0.5)
    state = [np.array(v) for v in source.variables]

    def afresh(x, training=False):
        for variable, value in zip(source.variables, state, strict=True):
            variable.assign(value)
        return source(x, training=True)

    adversarial = attack(afresh, images, labels, seed=numbers(0))
    both = np.concatenate([labels, labels])
    descend(expected, lambda: 2 * cross_entropy(both, expected(tf.concat([images, adversarial], 0), training=True)))
    for ours, theirs, other in zip(network.variables, expected.variables, inference.variables, strict=True):
        # A sign that rounding turns in one of three steps moves a pixel, and the weights by some 1e-4 of their step.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4, err_msg=ours.path)
        if ours.name == "kernel":
            assert np.abs(np.array(ours) - np.array(other)).max() > 2e-3
