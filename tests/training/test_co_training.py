"""One step of `CoTraining` against Algorithm 1 written out in plain TensorFlow, and what must stay as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining, DomainAdversarial
from satm_tf.attacks import FGSM, RandomisedStep

EPSILON, RATE, WEIGHT = 0.05, 0.1, 0.7
# No random step, so that the reference needs no random numbers of the attack's.
ATTACK = RandomisedStep(epsilon=EPSILON, alpha=0.0)
# Float32 sums over 12 images in another order; what a wrong step moves is tested to be a hundred times as much.
TOLERANCE = 2e-6


def craft(network, images):
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        probabilities = tf.nn.softmax(network(images, training=False))
        least_likely = tf.argmin(probabilities, -1)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(least_likely, probabilities))
    return np.clip(images - EPSILON * np.sign(tape.gradient(loss, images)), 0.0, 1.0)


def gradients_of(network, images, adversarial, labels, head=None, domain_weight=0.0, strength=0.0):
    """Gradients of Algorithm 1's loss, with the reversal by hand: the network gets minus `strength` times its part."""
    with tf.GradientTape(persistent=True) as tape:
        features = network.features(tf.concat([images, adversarial], 0), training=True)
        logits = network.classify(features, training=True)
        clean, attacked = tf.split(tf.nn.log_softmax(logits), 2)
        chosen = np.eye(logits.shape[-1], dtype=np.float32)[labels]
        task = -tf.reduce_mean(tf.reduce_sum(chosen * clean, -1))
        task -= WEIGHT * tf.reduce_mean(tf.reduce_sum(chosen * attacked, -1))
        if head is not None:
            first_kernel, first_bias, second_kernel, second_bias = head
            hidden = tf.nn.relu(features @ first_kernel + first_bias)
            probability = tf.sigmoid((hidden @ second_kernel + second_bias)[:, 0])
            clean, attacked = tf.split(probability, 2)
            domain = -0.5 * (tf.reduce_mean(tf.math.log(1 - clean)) + tf.reduce_mean(tf.math.log(attacked)))
            domain *= domain_weight
    gradients = tape.gradient(task, [v.value for v in network.trainable_variables])
    if head is None:
        return gradients, []
    reversed_ = tape.gradient(domain, [v.value for v in network.trainable_variables], unconnected_gradients="zero")
    return [g - strength * r for g, r in zip(gradients, reversed_, strict=True)], tape.gradient(domain, head)


def twin(make_network, network, **options):
    """A second network with the same weights."""
    other = make_network("twin", **options)
    other.set_weights(network.get_weights())
    return other


def assert_weights(network, expected, tolerance=TOLERANCE):
    for variable, value in zip(network.weights, expected.weights, strict=True):
        np.testing.assert_allclose(variable, value, rtol=0, atol=tolerance, err_msg=variable.path)


@pytest.mark.parametrize(
    "adaptation", [None, DomainAdversarial(weight=0.5, strength=0.8, hidden=5)], ids=["plain", "domain"]
)
def test_one_step_is_algorithm_1(make_network, images, labels, adaptation):
    a, b = make_network("a"), make_network("b", batch_norm=True, width=4)
    trainer = CoTraining(
        {"a": a, "b": b}, attack=ATTACK, domain_adaptation=adaptation, adversarial_weight=WEIGHT, seed=3
    )
    trainer.compile(keras.optimizers.SGD(RATE))
    expected = {"a": twin(make_network, a), "b": twin(make_network, b, batch_norm=True, width=4)}
    heads = {
        name: [tf.Variable(v) for v in trainer.domain_heads[name].trainable_variables] if adaptation else None
        for name in expected
    }

    adversarial = {name: craft(network, images) for name, network in expected.items()}
    options = {"domain_weight": 0.5, "strength": 0.8} if adaptation else {}
    updates = {
        name: gradients_of(expected[name], images, adversarial[source], labels, heads[name], **options)
        for name, source in (("a", "b"), ("b", "a"))
    }
    for name, (gradients, head_gradients) in updates.items():
        for variable, gradient in zip(expected[name].trainable_variables, gradients, strict=True):
            variable.assign_sub(RATE * gradient)
        for variable, gradient in zip(heads[name] or [], head_gradients, strict=True):
            variable.assign_sub(RATE * gradient)

    trainer.train_on_batch(images, labels)

    for name, network in (("a", a), ("b", b)):
        assert_weights(network, expected[name])
        for variable, value in zip(
            trainer.domain_heads[name].weights if adaptation else [], heads[name] or [], strict=True
        ):
            np.testing.assert_allclose(variable, value, rtol=0, atol=TOLERANCE)
    assert int(trainer.step) == 1


def test_both_networks_attack_with_their_weights_from_before_the_step(make_network, images, labels):
    """Had one been updated first, the other's step would differ by far more than rounding."""
    a, b = make_network("a"), make_network("b", width=4)
    trainer = CoTraining({"a": a, "b": b}, attack=ATTACK, adversarial_weight=WEIGHT)
    trainer.compile(keras.optimizers.SGD(1.0))
    before = {name: twin(make_network, network, width=width) for name, network, width in (("a", a, 6), ("b", b, 4))}
    trainer.train_on_batch(images, labels)
    after = {"a": a, "b": b}
    for name, source in (("a", "b"), ("b", "a")):
        old, _ = gradients_of(before[name], images, craft(before[source], images), labels)
        new, _ = gradients_of(before[name], images, craft(after[source], images), labels)
        moved = [
            v.value - w for v, w in zip(before[name].trainable_variables, after[name].trainable_variables, strict=True)
        ]
        error = max(float(tf.reduce_max(tf.abs(m - g))) for m, g in zip(moved, old, strict=True))
        sequential = max(float(tf.reduce_max(tf.abs(m - g))) for m, g in zip(moved, new, strict=True))
        assert error < 10 * TOLERANCE  # the step is ten times that of the tests above
        assert sequential > 1000 * TOLERANCE


def test_three_networks_take_their_sources_in_turn(make_network, images, labels):
    networks = {name: make_network(name, width=3 + i) for i, name in enumerate("abc")}
    expected = {name: twin(make_network, networks[name], width=3 + i) for i, name in enumerate("abc")}
    trainer = CoTraining(networks, attack=ATTACK, adversarial_weight=WEIGHT)
    trainer.compile(keras.optimizers.SGD(RATE))
    for turn in ({"a": "b", "b": "c", "c": "a"}, {"a": "c", "b": "a", "c": "b"}, {"a": "b", "b": "c", "c": "a"}):
        adversarial = {name: craft(network, images) for name, network in expected.items()}
        updates = {n: gradients_of(expected[n], images, adversarial[turn[n]], labels)[0] for n in expected}
        for name, gradients in updates.items():
            for variable, gradient in zip(expected[name].trainable_variables, gradients, strict=True):
                variable.assign_sub(RATE * gradient)
        trainer.train_on_batch(images, labels)
    for name, network in networks.items():
        assert_weights(network, expected[name], 3 * TOLERANCE)


def test_learning_from_a_frozen_partner_is_the_same_step_and_leaves_it_to_the_bit(make_network, images, labels, arrays):
    a, b = make_network("a"), make_network("b", batch_norm=True, dropout=0.5)
    expected = twin(make_network, a)
    gradients, _ = gradients_of(expected, images, craft(b, images), labels)
    for variable, gradient in zip(expected.trainable_variables, gradients, strict=True):
        variable.assign_sub(RATE * gradient)
    state = arrays(b)
    trainer = CoTraining({"a": a}, frozen={"b": b}, learns_from="frozen", attack=ATTACK, adversarial_weight=WEIGHT)
    trainer.compile(keras.optimizers.SGD(RATE))
    trainer.train_on_batch(images, labels)
    assert_weights(a, expected)
    for before, after in zip(state, arrays(b), strict=True):
        np.testing.assert_array_equal(before, after)
    assert b.trainable, "a frozen network is the caller's, and keeps its settings"
    assert not any(v is w for v in trainer.trainable_variables for w in b.trainable_variables)


def test_learning_from_itself_is_standard_adversarial_training(make_network, images, labels):
    a = make_network("a")
    expected = twin(make_network, a)
    gradients, _ = gradients_of(expected, images, craft(expected, images), labels)
    for variable, gradient in zip(expected.trainable_variables, gradients, strict=True):
        variable.assign_sub(RATE * gradient)
    trainer = CoTraining({"a": a}, learns_from="itself", attack=ATTACK, adversarial_weight=WEIGHT)
    trainer.compile(keras.optimizers.SGD(RATE))
    trainer.train_on_batch(images, labels)
    assert_weights(a, expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learning_from_nobody_equals_plain_fit(make_network, images, labels, optimizer):
    a, plain = make_network("a", batch_norm=True), make_network("plain", batch_norm=True)
    plain.set_weights(a.get_weights())
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)
    trainer = CoTraining({"a": a}, learns_from="nobody")
    trainer.compile(keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": 0.01}}))
    plain.compile(
        keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": 0.01}}),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    ours = trainer.fit(dataset, epochs=3, verbose=0, shuffle=False, validation_data=dataset)
    theirs = plain.fit(dataset, epochs=3, verbose=0, shuffle=False, validation_data=dataset)
    assert_weights(a, plain)
    np.testing.assert_allclose(ours.history["val_loss"], theirs.history["val_loss"], rtol=1e-5)
    np.testing.assert_allclose(ours.history["loss"], theirs.history["loss"], rtol=1e-5)


def test_class_weights_are_those_of_plain_fit(make_network, images, labels):
    a, plain = make_network("a"), make_network("plain")
    plain.set_weights(a.get_weights())
    trainer = CoTraining({"a": a}, learns_from="nobody")
    trainer.compile(keras.optimizers.SGD(RATE))
    plain.compile(keras.optimizers.SGD(RATE), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for model in (trainer, plain):
        model.fit(images, labels, batch_size=4, shuffle=False, verbose=0, class_weight={0: 0.1, 1: 2.0, 2: 1.0, 3: 3.0})
    assert_weights(a, plain)


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


def test_validation_loss_is_the_sum_over_the_networks(make_network, images, labels):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    trainer = CoTraining(networks, attack=ATTACK, adversarial_weight=WEIGHT)
    trainer.compile("sgd")
    logs = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    expected = {}
    for name, source in (("a", "b"), ("b", "a")):
        losses = [
            keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, networks[name](x, training=False))
            for x in (images, craft(networks[source], images))
        ]
        expected[name] = float(losses[0] + WEIGHT * losses[1])
        assert logs[f"{name}_clean_loss"] == pytest.approx(float(losses[0]), rel=1e-5)
        assert logs[f"{name}_adversarial_loss"] == pytest.approx(float(losses[1]), rel=1e-5)
        assert logs[f"{name}_loss"] == pytest.approx(expected[name], rel=1e-5)
    assert logs["loss"] == pytest.approx(sum(expected.values()), rel=1e-5)


def test_the_same_seed_gives_the_same_networks(make_network, images, labels):
    def train(seed):
        keras.utils.set_random_seed(5)
        networks = {"a": make_network("a", dropout=0.3), "b": make_network("b", batch_norm=True)}
        trainer = CoTraining(networks, attack=RandomisedStep(epsilon=EPSILON), seed=seed)
        trainer.compile("adam")
        trainer.fit(images, labels, epochs=2, batch_size=6, verbose=0, shuffle=False)
        return np.concatenate([np.ravel(w) for n in networks.values() for w in n.get_weights()])

    np.testing.assert_array_equal(train(1), train(1))
    assert np.abs(train(1) - train(2)).max() > 0


def test_the_schedule_knows_how_many_steps_are_planned(make_network, images, labels):
    trainer = CoTraining(
        {"a": make_network("a"), "b": make_network("b", width=4)},
        attack=FGSM(epsilon=EPSILON),
        domain_adaptation=DomainAdversarial(hidden=4),
    )
    trainer.compile("sgd")
    trainer.fit(images, labels, epochs=2, batch_size=6, verbose=0)
    assert (int(trainer.planned_steps), int(trainer.step)) == (4, 4)


def test_early_stopping_watches_the_sum_and_restores_the_best(make_network, images, labels):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    trainer = CoTraining(networks, attack=ATTACK)
    trainer.compile(keras.optimizers.SGD(50.0))  # diverges, so the first epoch is the best
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    history = trainer.fit(images, labels, validation_data=(images, labels), epochs=20, verbose=0, callbacks=[stop])
    assert len(history.history["loss"]) < 20
    best = min(history.history["val_loss"])
    assert trainer.evaluate(images, labels, verbose=0, return_dict=True)["loss"] == pytest.approx(best, rel=1e-5)


class TestBadInput:
    def test_one_network_trained_and_frozen(self, make_network):
        a = make_network("a")
        with pytest.raises(ValueError, match="either trained or frozen"):
            CoTraining({"a": a}, frozen={"b": a}, learns_from="frozen", attack=ATTACK)

    def test_no_attack(self, make_network):
        with pytest.raises(ValueError, match=r"An attack is needed.*'a' learns from 'b'"):
            CoTraining({"a": make_network("a"), "b": make_network("b")}, attack={"itself": ATTACK})

    def test_no_network(self):
        with pytest.raises(ValueError, match="at least one network"):
            CoTraining({}, learns_from="nobody")

    def test_different_numbers_of_classes(self, make_network):
        with pytest.raises(ValueError, match="same num_classes"):
            CoTraining({"a": make_network("a"), "b": make_network("b", num_classes=3)}, attack=ATTACK)

    def test_domain_adaptation_of_a_network_that_learns_from_nobody(self, make_network):
        with pytest.raises(ValueError, match="learn from somebody"):
            CoTraining(
                {"a": make_network("a"), "b": make_network("b")},
                attack=ATTACK,
                learns_from={"a": "b", "b": "nobody"},
                domain_adaptation={"b": DomainAdversarial()},
            )

    def test_negative_weight(self, make_network):
        with pytest.raises(ValueError, match="adversarial_weight"):
            CoTraining({"a": make_network("a")}, learns_from="itself", attack=ATTACK, adversarial_weight=-1)

    def test_identical_twins_warn(self, make_network):
        a = make_network("a")
        with pytest.warns(UserWarning, match="diverges"):
            CoTraining({"a": a, "b": twin(make_network, a)}, attack=ATTACK)
