from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
import tensorflow as tf
import yaml

from satm_tf import attacks
from tests.attacks.conftest import operations_that_run


@dataclass(frozen=True, kw_only=True)
class Everywhere(attacks.Attack):
    """A user's attack: far too large a step, at random."""

    def perturb(self, model, images, labels, epsilon, seed):
        return images + 100 * tf.random.stateless_normal(tf.shape(images), seed)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_users_attack_is_kept_in_bounds_and_ball(network, images, labels, norm):
    adversarial = Everywhere(epsilon=0.3, norm=norm)(network, images, labels).numpy()
    difference = (adversarial - images).reshape(7, -1)
    length = {"linf": np.abs(difference).max(1), "l2": np.linalg.norm(difference, axis=1)}[norm]
    assert np.all((adversarial >= 0) & (adversarial <= 1))
    assert np.all(length <= 0.3 + 1e-6)
    assert np.all(length > 0.05)


def test_epsilon_of_a_call_is_a_scalar_or_one_per_image(network, images, labels):
    attack = Everywhere(epsilon=0.5)
    epsilon = np.linspace(0, 0.3, 7, dtype="float32")
    difference = np.abs(attack(network, images, labels, epsilon=epsilon).numpy() - images).max((1, 2, 3))
    # Some pixel of 192 has room for the whole step: the ball is used to its edge.
    np.testing.assert_allclose(difference, epsilon, atol=1e-6)
    difference = np.abs(attack(network, images, labels, epsilon=0.1).numpy() - images).max((1, 2, 3))
    np.testing.assert_allclose(difference, 0.1, atol=1e-6)


def test_seed_repeats_and_another_differs(network, images, labels):
    attack = Everywhere(epsilon=0.1)
    first = attack(network, images, labels, seed=3).numpy()
    np.testing.assert_array_equal(first, attack(network, images, labels, seed=3))
    np.testing.assert_array_equal(first, Everywhere(epsilon=0.1, seed=3)(network, images, labels))
    np.testing.assert_array_equal(first, attack(network, images, labels, seed=tf.constant([0, 3])))
    assert np.any(first != attack(network, images, labels, seed=4).numpy())
    assert np.any(first != attack(network, images, labels, seed=tf.constant([1, 3])).numpy())


def test_result_is_a_constant_to_the_update(network, images, labels):
    images = tf.constant(images)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        loss = tf.reduce_sum(network(attacks.FGSM(epsilon=0.1)(network, images, labels)))
    assert tape.gradient(loss, images) is None
    assert tape.gradient(loss, network.trainable_variables[0]) is not None


@pytest.mark.parametrize("attack", [attacks.FGSM(epsilon=0.1), attacks.PGD(epsilon=0.1)], ids=["fgsm", "pgd"])
def test_no_weight_gradient_is_computed(network, images, labels, attack):
    craft = tf.function(attack.__call__)
    graph = craft.get_concrete_function(network, tf.constant(images), tf.constant(labels)).graph
    assert "Conv2DBackpropInput" in operations_that_run(graph)
    assert "Conv2DBackpropFilter" not in operations_that_run(graph)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_precision_of_the_network_does_not_matter_to_the_result(make_network, images, labels, precision):
    model = make_network(1, dtype=precision)
    adversarial = attacks.FGSM(epsilon=0.1)(model, images, labels)
    assert adversarial.dtype == tf.float32
    exact = attacks.FGSM(epsilon=0.1)(make_network(1), images, labels)
    # Half precision turns the sign of the smallest gradients only.
    assert np.mean(np.isclose(adversarial, exact, atol=1e-6)) > 0.97


def test_images_and_configuration_are_left_as_they_were(network, images, labels):
    before = images.copy()
    attack = attacks.FGSM(epsilon=0.1)
    attack(network, images, labels, epsilon=0.2)
    np.testing.assert_array_equal(images, before)
    assert attack == attacks.FGSM(epsilon=0.1)
    with pytest.raises(FrozenInstanceError):
        attack.epsilon = 0.2


@pytest.mark.parametrize("name", attacks.available_attacks())
def test_configuration_round_trips_through_json_and_yaml(name):
    attack = attacks.get(name, epsilon=0.0625, seed=5)
    config = attacks.serialize(attack)
    assert attacks.get(config) == attack
    assert attacks.get(json.loads(json.dumps(config))) == attack
    assert attacks.get(yaml.safe_load(yaml.safe_dump(config))) == attack
    assert attacks.get(config, seed=6).seed == 6
    assert attacks.get(attack) is attack


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: attacks.FGSM(epsilon=16), r"did you mean 16/256 = 0\.0625\?.*Received: epsilon=16"),
        (lambda: attacks.FGSM(epsilon=-0.1), "non-negative.*Received: epsilon=-0.1"),
        (lambda: attacks.get("fgms", epsilon=0.1), "Unknown attack. Did you mean 'fgsm'.*Received: 'fgms'"),
        (lambda: attacks.get("fgsm", epsilom=0.1), "Unknown option of attack 'fgsm'. Did you mean 'epsilon'.*epsilom"),
        (lambda: attacks.get("fgsm", epsilon=0.1, norm="l7"), "Unknown norm.*Received: 'l7'"),
        (lambda: attacks.FGSM(epsilon=0.1, label_source="labl"), "Unknown label source. Did you mean 'label'"),
        (lambda: attacks.get({"epsilon": 0.1}), "Unknown attack.*Received: None"),
    ],
)
def test_mistakes_in_a_configuration_are_named(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match=r"Another attack already has this name.*'fgsm'"):

        class Again(attacks.FGSM, name="fgsm"):
            pass


def test_a_class_may_be_defined_anew_as_by_a_notebooks_cell(monkeypatch):
    monkeypatch.setattr(attacks.Attack, "members", dict(attacks.Attack.members))
    for steps in (3, 5):

        class Mine(attacks.PGD, name="mine"):
            pass

        Mine.steps_of_this = steps
    assert type(attacks.get("mine", epsilon=0.1)).steps_of_this == 5


OUTSIDE = {"8-bit": 255.0, "a little above": 1 + 1e-5, "not a number": np.nan}


@pytest.mark.parametrize("factor", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_images_outside_the_range_are_refused(network, images, labels, factor):
    attack, outside = attacks.FGSM(epsilon=0.1), images.copy()
    # One pixel of one image, which reaches 1.
    outside[3].flat[outside[3].argmax()] *= factor
    sentence = r"Attacks take images in \[0, 1\]; divide 8-bit images by 255\. Received values from"
    for entry in (attack, attack.outcome, attack.craft, lambda model, *batch: attack.compiled(model)(*batch)):
        with pytest.raises(ValueError, match=rf"^{sentence} (nan|0) to (nan|\d)"):
            entry(network, outside, labels)
    for step in (
        lambda images: attack(network, images, labels),
        lambda images: tf.switch_case(tf.constant(1), [lambda: images, lambda: attack(network, images, labels)]),
    ):
        traced = tf.function(step, input_signature=[tf.TensorSpec([None, 8, 8, 3])])
        assert traced(images).shape == images.shape
        with pytest.raises(tf.errors.InvalidArgumentError, match=sentence):
            traced(outside)


def test_rounding_of_the_range_is_let_pass(network, images, labels):
    rounded = images + np.float32(5e-7)
    assert rounded.max() > 1
    adversarial = attacks.FGSM(epsilon=0.1).compiled(network)(rounded, labels).numpy()
    assert adversarial.max() <= 1


def test_a_traced_call_checks_the_range_once(network, images, labels):
    traced = tf.function(lambda images: attacks.PGD(epsilon=0.1, steps=5)(network, images, labels))
    graph = traced.get_concrete_function(tf.TensorSpec([None, 8, 8, 3])).graph
    assert sum("refuse" in operation.name or operation.type == "If" for operation in graph.get_operations()) == 1


def test_another_error_of_a_compiled_call_is_not_taken_for_the_range(images, labels):
    def fails(x, training=False):
        with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(x), 0.5, "too bright")]):
            return tf.reduce_mean(x, [1, 2])

    with pytest.raises(tf.errors.InvalidArgumentError, match="too bright"):
        attacks.FGSM(epsilon=0.1).compiled(fails)(images, labels % 3)


def test_compiled_gives_what_a_call_gives_and_is_compiled_once(network, images, labels):
    attack = attacks.RandomisedStep(epsilon=0.1)
    traces = []

    def traced(images, training=False):
        traces.append(images.shape)
        return network(images, training=training)

    craft = attack.compiled(traced)
    for epsilon, seed in [(None, None), (0.05, 1), (0.2, 2)]:
        expected = attack(network, images, labels, epsilon=epsilon, seed=seed)
        crafted = craft(images, labels, epsilon=epsilon, seed=seed)
        # Another order of summation may turn the sign of a gradient that is all but zero.
        assert np.mean(np.isclose(crafted, expected, atol=1e-6)) > 0.99
    assert traces == [(4, 8, 8, 3), images.shape], "one probe with noise, and one trace"


def test_compiled_sees_the_weights_as_they_are(make_network, images, labels):
    model = make_network(1)
    craft = attacks.FGSM(epsilon=0.1).compiled(model)
    before = craft(images, labels).numpy()
    model.layers[-1].kernel.assign(-model.layers[-1].kernel)
    assert np.mean(before != craft(images, labels).numpy()) > 0.1


def test_craft_takes_whole_arrays_and_several_epsilons_at_once(network, images, labels):
    attack = attacks.FGSM(epsilon=0.1)
    whole = attack.craft(network, images, labels, batch_size=3)
    # Another batch size sums in another order, which may turn the sign of a gradient that is all but zero.
    assert np.mean(np.isclose(whole, attack(network, images, labels), atol=1e-6)) > 0.99
    epsilons = [0.0, 0.05, 0.2]
    several = attack.craft(network, images, labels, epsilons=epsilons, batch_size=4)
    assert several.shape == (3, *images.shape)
    for crafted, epsilon in zip(several, epsilons, strict=True):
        assert np.mean(np.isclose(crafted, attack(network, images, labels, epsilon=epsilon), atol=1e-6)) > 0.99
    assert attack.craft(network, images[:0], labels[:0]).shape == (0, 8, 8, 3)


def test_craft_draws_other_numbers_for_each_batch(network, images, labels):
    twice = Everywhere(epsilon=0.1).craft(network, np.repeat(images[:1], 2, 0), np.repeat(labels[:1], 2), batch_size=1)
    assert np.mean(twice[0] != twice[1]) > 0.1


@pytest.mark.parametrize("label_source", ["label", "predicted", "least_likely", "target"])
def test_outcome_tells_success_by_what_the_attack_is_after(network, images, labels, label_source):
    attack = attacks.FGSM(epsilon=0.5, label_source=label_source)
    outcome = attack.outcome(network, images, labels)
    clean = network(images, training=False).numpy()
    after = network(attack(network, images, labels), training=False).numpy().argmax(1)
    expected = {
        "label": after != labels,
        "predicted": after != clean.argmax(1),
        "least_likely": after == clean.argmin(1),
        "target": after == labels,
    }[label_source]
    np.testing.assert_array_equal(outcome.success, expected)
    np.testing.assert_array_equal(outcome.before, clean.argmax(1))
    np.testing.assert_array_equal(outcome.after, after)
    np.testing.assert_allclose(outcome.distortion, np.abs(outcome.images - images).max((1, 2, 3)), atol=1e-7)


def test_autograph_converts_only_what_a_network_asks_for(images, labels):
    def network(images, training=None):
        score = tf.reduce_mean(images, axis=(1, 2, 3))
        if tf.reduce_sum(score) > 0:
            score = 2 * score
        return tf.stack([-score, *[score] * 9], axis=-1)

    craft = tf.function(attacks.FGSM(epsilon=0.1))
    with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
        craft(network, images, labels)
    assert craft(tf.function(network), images, labels).shape == images.shape
