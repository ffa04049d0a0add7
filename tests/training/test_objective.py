"""What weighs what in a network's loss; the whole of it is in `test_steps.py`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining
from satm_tf.attacks import PGD
from satm_tf.training import ClassificationLoss
from satm_tf.training.crafting import Crafted
from tests.training.by_hand import ATTACK, craft
from tests.training.small_training import data
from tests.training.small_training import make_network as small


def test_sample_weights_scale_the_clean_and_the_adversarial_loss(make_network, images, labels):
    weights = np.linspace(0.0, 2.0, 12).astype("float32")
    network = make_network("a")
    adversarial = craft(network, images)
    trainer = CoTraining({"a": network}, learns_from="itself", attack=ATTACK)
    trainer.compile(keras.optimizers.SGD(0.0))
    logs = trainer.train_on_batch(images, labels, sample_weight=weights, return_dict=True)
    for part, x in (("clean", images), ("adversarial", adversarial)):
        losses = keras.losses.sparse_categorical_crossentropy(labels, network(x), from_logits=True)
        assert logs[f"a_{part}_loss"] == pytest.approx(np.mean(weights * losses), rel=1e-5)


def test_a_loss_of_its_own_is_that_of_clean_and_of_adversarial_images(make_network, images, labels):
    loss = ClassificationLoss(label_smoothing=0.2, class_weights=[1.0, 0.5, 2.0, 1.5], order_temperature=0.7)
    network = make_network("a")
    adversarial = craft(network, images)
    trainer = CoTraining({"a": network}, learns_from="itself", attack=ATTACK, loss=loss)
    trainer.compile(keras.optimizers.SGD(0.0))
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    for part, x in (("clean", images), ("adversarial", adversarial)):
        assert logs[f"a_{part}_loss"] == pytest.approx(float(tf.reduce_mean(loss(labels, network(x)))), rel=1e-5)


def penalty(network, images, labels, order=1):
    """The norm of each image's gradient, from the formula; no image changes another's."""
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = -tf.reduce_sum(np.eye(4, dtype=np.float32)[labels] * tf.nn.log_softmax(network(x)))
    return np.linalg.norm(np.reshape(tape.gradient(loss, x), [len(images), -1]), ord=order, axis=1)


@pytest.mark.parametrize(("eagerly", "norm", "order"), [(False, "linf", 1), (True, "linf", 1), (False, "l2", 2)])
def test_the_gradient_penalty_descends_as_finite_differences_say(eagerly, norm, order):
    keras.utils.set_random_seed(1)
    network = small("a")  # without batch normalisation, so that no image changes another's gradient
    examples = data()
    images, labels = np.float32(examples.images[:6]) / 255, examples.labels[:6]
    weight = np.linspace(0.5, 1.5, 6).astype("float32")
    before = network.get_weights()

    def objective(share, direction):
        network.set_weights([w + share * d for w, d in zip(before, direction, strict=True)])
        return np.mean(weight * penalty(network, images, labels, order)) + float(tf.add_n(network.losses))

    expected = np.mean(weight * penalty(network, images, labels, order))
    trainer = CoTraining({"a": network}, "undefended", clean_weight=0.0, gradient_penalty=1.0, penalty_norm=norm)
    trainer.compile(keras.optimizers.SGD(1.0), run_eagerly=eagerly)
    logs = trainer.train_on_batch(images, labels, sample_weight=weight, return_dict=True)
    assert logs["a_gradient_loss"] == pytest.approx(expected, rel=1e-5)
    gradients = [old - new for old, new in zip(before, network.get_weights(), strict=True)]
    assert np.linalg.norm(np.concatenate([each.ravel() for each in gradients])) > 0.01
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = [rng.normal(size=each.shape).astype("float32") for each in before]
        length = np.sqrt(sum(np.vdot(each, each) for each in direction))
        direction = [each / length for each in direction]
        slope = (objective(1e-3, direction) - objective(-1e-3, direction)) / 2e-3
        # float32's rounding of a figure near 1, over the step, and the bends where a pixel's gradient changes sign.
        along = sum(np.vdot(g, d) for g, d in zip(gradients, direction, strict=True))
        assert slope == pytest.approx(along, rel=0.01, abs=2e-3)


def test_the_gradient_penalty_is_right_in_half_precision():
    keras.utils.set_random_seed(1)
    single = small("a")
    examples = data()
    images, labels = np.float32(examples.images[:6]) / 255, examples.labels[:6]
    start, expected = single.get_weights(), penalty(single, images, labels).mean()
    updates = {}
    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        try:
            network = small("a")
        finally:
            keras.config.set_dtype_policy("float32")
        network.set_weights(start)
        trainer = CoTraining({"a": network}, "undefended", clean_weight=0.0, gradient_penalty=1.0)
        trainer.compile(keras.optimizers.SGD(0.1))
        for _ in range(10):  # float16's loss scale is halved, and the step skipped, until no gradient overflows.
            logs = trainer.train_on_batch(images, labels, return_dict=True)
            # bfloat16 has 8 bits of a number, and errors of single pixels do not add up to more.
            assert logs["a_gradient_loss"] == pytest.approx(expected, rel=0.03)
            now = np.concatenate([(a - b).ravel() for a, b in zip(network.get_weights(), start, strict=True)])
            if now.any():
                break
        updates[policy] = now
    reference = updates.pop("float32")
    for update in updates.values():
        cosine = update @ reference / np.linalg.norm(update) / np.linalg.norm(reference)
        assert cosine > 0.95  # Signs of single pixels' gradients differ; a missing second derivative gives 0.
        assert np.linalg.norm(update) == pytest.approx(np.linalg.norm(reference), rel=0.1)


def test_a_distilled_network_learns_the_mean_of_its_teachers_probabilities(make_network, images, labels):
    """One step against the formula, from logits over the temperature."""
    network, *teachers = (make_network(name, width=width) for name, width in (("a", 4), ("b", 5), ("c", 6)))
    teachers[0].set_weights([5 * each for each in teachers[0].get_weights()])  # so that they disagree
    soft = np.mean([tf.nn.softmax(teacher(images) / 20) for teacher in teachers], axis=0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(-tf.reduce_sum(soft * tf.nn.log_softmax(network(images) / 20), axis=-1))
    gradients = tape.gradient(loss, network.trainable_variables)
    expected = [w - 100 * g for w, g in zip(network.get_weights(), gradients, strict=True)]
    trainer = CoTraining({"a": network}, "distillation", frozen=dict(zip("bc", teachers, strict=True)))
    trainer.compile(keras.optimizers.SGD(100.0))
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    assert logs["a_teacher_loss"] == pytest.approx(float(loss), rel=1e-5)
    for ours, value in zip(network.get_weights(), expected, strict=True):
        np.testing.assert_allclose(ours, value, atol=1e-5)  # float32 sums in another order


def test_one_who_teaches_oneself_stays(make_network, images, labels):
    """The cross-entropy with one's own probabilities is least where one is."""
    network = make_network("a")
    before = network.get_weights()
    trainer = CoTraining({"a": network}, "distillation", teachers="before")
    trainer.compile(keras.optimizers.SGD(1.0))
    trainer.train_on_batch(images, labels)
    for ours, value in zip(network.get_weights(), before, strict=True):
        np.testing.assert_allclose(ours, value, atol=1e-7)


def test_a_restored_teacher_is_the_one_that_was_saved(make_network, images, labels):
    def trained(start):
        network = make_network("a")
        network.set_weights([start * each for each in network.get_weights()])
        trainer = CoTraining({"a": network}, "distillation", teachers="before")
        trainer.compile(keras.optimizers.SGD(1.0))
        trainer.train_on_batch(images, labels)  # Graphs are traced before the state is restored.
        return network, trainer

    (network, trainer), (other, resumed) = trained(1.0), trained(3.0)
    network.set_weights([2 * each for each in network.get_weights()])
    for variable, value in zip(resumed.state(), [each.numpy() for each in trainer.state()], strict=True):
        variable.assign(value)
    for each in (trainer, resumed):
        each.train_on_batch(images, labels)
    for ours, value in zip(other.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_allclose(ours, value, atol=1e-6)


def test_a_teacher_is_refused_or_left_out_where_it_cannot_teach(make_network, images, labels):
    network, partner = make_network("a"), make_network("b", width=4)
    probabilities = keras.Sequential([make_network("c"), keras.layers.Softmax()])
    fewer = make_network("d", num_classes=3)
    for teacher, message in (
        (probabilities, "probabilities"),
        (fewer, r"must distinguish 4 classes. Received: \(12, 3\)"),
    ):
        trainer = CoTraining({"a": network}, "distillation", frozen={"old": teacher})
        trainer.compile("sgd")
        with pytest.raises(ValueError, match=message):
            trainer.train_on_batch(images, labels)
    trainer = CoTraining(
        {"a": network, "b": partner},
        "distillation",
        teachers={"a": "frozen", "b": "nobody"},
        frozen={"old": make_network("c")},
    )
    trainer.compile("sgd")
    assert "b_teacher_loss" not in trainer.train_on_batch(images, labels, return_dict=True)


def test_the_null_classs_share_of_a_label_grows_with_the_perturbation(make_network, images, labels):
    network = make_network("a").with_null_class()
    kernel, bias = network.get_weights()[-2:]
    bias[-1], kernel[:, -1] = 0.3, kernel[:, 0]
    network.set_weights([*network.get_weights()[:-2], kernel, bias])
    trainer = CoTraining({"a": network}, learns_from="itself", attack=PGD(epsilon=0.05), null_share=0.8)
    signs = np.where(np.random.default_rng(0).uniform(size=images.shape) < 0.5, -1.0, 1.0).astype("float32")
    for perturbed, share in ((0.0, 0.0), (0.5, 0.4), (1.0, 0.8), (2.0, 0.8)):
        adversarial = images + 0.05 * perturbed * signs
        crafted = Crafted([adversarial], tf.zeros([1], tf.int32))
        evaluated = trainer._objectives["a"].evaluate(
            tf.constant(images), tf.constant(labels), None, crafted, 1.0, training=False
        )
        for part, x, its in (("clean_loss", images, 0.0), ("adversarial_loss", adversarial, share)):
            label = (1 - its) * np.eye(5)[labels] + its * np.eye(5)[4]
            expected = -np.sum(label * tf.nn.log_softmax(network.features(x) @ kernel + bias), axis=-1)
            np.testing.assert_allclose(evaluated.parts[part], expected, rtol=1e-4)


def test_a_null_class_that_is_missing(make_network):
    with pytest.raises(ValueError, match=r"pass network.with_null_class\(\). Received: a without one"):
        CoTraining({"a": make_network("a")}, learns_from="itself", null_share=1.0)
