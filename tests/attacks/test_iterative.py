"""Iterative attacks against short recomputations from the papers' formulas, written without the package."""

from __future__ import annotations

import foolbox
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks

EPSILON, STEPS = 0.1, 5
STEP = EPSILON / STEPS


def _gradient(network, x, labels):
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.keras.losses.sparse_categorical_crossentropy(labels, network(x, training=False), from_logits=True)
    return tape.gradient(loss, x).numpy()


def _clip(x, images, epsilon=EPSILON):
    return np.clip(np.clip(x, images - epsilon, images + epsilon), 0, 1)


def _agree(actual, expected, share=0.99, atol=1e-5):
    """Alike but for the few pixels whose gradient is so near zero that rounding turns its sign, at some step."""
    assert np.mean(np.isclose(actual, expected, atol=atol)) > share


def test_bim_is_its_formula(network, images, labels):
    x = images
    for _ in range(STEPS):
        x = _clip(x + STEP * np.sign(_gradient(network, x, labels)), images)
    _agree(attacks.BIM(epsilon=EPSILON, steps=STEPS)(network, images, labels), x)


def test_iterative_ll_goes_to_the_class_that_is_least_likely_at_the_clean_image(network, images, labels):
    least = np.argmin(network(images, training=False), -1)
    x = images
    for _ in range(STEPS):
        x = _clip(x - 0.1 * np.sign(_gradient(network, x, least)), images, 0.5)
    # The steps are long enough for another class to become the least likely one on the way.
    assert np.any(np.argmin(network(x, training=False), -1) != least)
    attack = attacks.IterativeLL(epsilon=0.5, steps=STEPS)
    _agree(attack(network, images, labels), x)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_its_formula(network, images, labels, nesterov):
    # Foolbox accumulates signs where Dong et al., Eq. 6, accumulate normalised gradients: hence this loop.
    x, velocity = images, np.zeros_like(images)
    for _ in range(STEPS):
        gradient = _gradient(network, x + STEP * 0.8 * velocity if nesterov else x, labels)
        velocity = 0.8 * velocity + gradient / np.abs(gradient).mean((1, 2, 3), keepdims=True)
        x = _clip(x + STEP * np.sign(velocity), images)
    attack = attacks.get("ni_fgsm" if nesterov else "mi_fgsm", epsilon=EPSILON, steps=STEPS, momentum=0.8)
    _agree(attack(network, images, labels), x)
    assert np.mean(np.isclose(x, attacks.BIM(epsilon=EPSILON, steps=STEPS)(network, images, labels))) < 0.98


def test_variance_tuning_corrects_by_what_the_neighbours_had_been(make_network, images, labels):
    """With very many neighbours the mean gradient around a point is what it is, whoever draws them."""
    network = make_network(3)
    attack = attacks.VMIFGSM(epsilon=EPSILON, steps=3, neighbours=300, neighbourhood=2.0)
    generator = np.random.default_rng(5)
    x, velocity, variance = images, np.zeros_like(images), np.zeros_like(images)
    for _ in range(3):
        gradient = _gradient(network, x, labels)
        velocity = velocity + (gradient + variance) / np.abs(gradient + variance).mean((1, 2, 3), keepdims=True)
        around = generator.uniform(-2 * EPSILON, 2 * EPSILON, [300, *images.shape])
        every = _gradient(network, (x + around).reshape(-1, 8, 8, 3), np.tile(labels, 300))
        variance = every.reshape(around.shape).mean(0) - gradient
        x = _clip(x + EPSILON / 3 * np.sign(velocity), images)
    crafted = attack.compiled(network)(images, labels)
    plain = attacks.MIFGSM(epsilon=EPSILON, steps=3)(network, images, labels)
    # The sampling error of 300 neighbours turns some signs; plain momentum differs in far more pixels.
    assert np.mean(~np.isclose(crafted, x, atol=1e-5)) < 0.25 * np.mean(~np.isclose(plain, x, atol=1e-5))


def _foolbox(network, attack, images, labels, epsilon):
    model = foolbox.TensorFlowModel(network, bounds=(0, 1))
    # With int64, the type of its own argmax: to mix integer types it calls what NumPy 2 has no more.
    return attack(model, tf.constant(images), tf.constant(labels, tf.int64), epsilons=epsilon)[1].numpy()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (attacks.FGSM(epsilon=0.1), foolbox.attacks.LinfFastGradientAttack()),
        (attacks.FGSM(epsilon=0.5, norm="l2"), foolbox.attacks.L2FastGradientAttack()),
        (
            attacks.BIM(epsilon=0.1, steps=5),
            foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=0.2, steps=5, random_start=False),
        ),
        (
            attacks.PGD(epsilon=0.1, steps=10, random_start=False),
            foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=10, random_start=False),
        ),
        (
            attacks.PGD(epsilon=0.5, steps=10, norm="l2", random_start=False),
            foolbox.attacks.L2PGD(rel_stepsize=0.25, steps=10, random_start=False),
        ),
    ],
    ids=["fgsm-linf", "fgsm-l2", "bim", "pgd-linf", "pgd-l2"],
)
def test_equal_to_foolbox(network, images, labels, ours, theirs):
    _agree(ours(network, images, labels), _foolbox(network, theirs, images, labels, ours.epsilon))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_starts_at_random_inside_the_ball_and_its_seed_moves_the_start(network, images, labels, norm):
    attack = attacks.PGD(epsilon=0.2, steps=1, step_size=1e-6, norm=norm)
    first = attack(network, images, labels, seed=1).numpy() - images
    second = attack(network, images, labels, seed=2).numpy() - images
    length = np.linalg.norm(first.reshape(7, -1), {"linf": np.inf, "l2": 2}[norm], axis=1)
    assert np.all((length > 0.05) & (length <= 0.2 + 1e-6))
    assert np.mean(np.isclose(first, second, atol=1e-4)) < 0.5


def test_restarts_keep_the_highest_loss_of_each_image(network, images, labels):
    def loss(x):
        return tf.keras.losses.sparse_categorical_crossentropy(labels, network(x, training=False), from_logits=True)

    weak = {"epsilon": 0.1, "steps": 1}
    restarted = loss(attacks.PGD(restarts=6, **weak)(network, images, labels)).numpy()
    starts = [tf.random.experimental.stateless_fold_in([0, 0], restart) for restart in range(6)]
    each = [loss(attacks.PGD(**weak)(network, images, labels, seed=start)) for start in starts]
    np.testing.assert_allclose(restarted, np.max(each, axis=0), rtol=1e-4)
    assert len(set(np.argmax(each, axis=0))) > 1, "no start was best for all, so keeping one per image was tested"


def test_rs_fgsm_is_one_step_of_one_and_a_quarter_epsilon_from_a_random_start(network, images, labels):
    found = attacks.RSFGSM(epsilon=EPSILON)(network, images, labels, seed=3)
    one_step = attacks.PGD(epsilon=EPSILON, steps=1, step_size=1.25 * EPSILON)(network, images, labels, seed=3)
    np.testing.assert_array_equal(found, one_step)
    # With u uniform in [-1, 1], u + 1.25 is beyond 1 with probability 5 / 8, and never below 1 / 4.
    inside = np.abs(np.asarray(images) - 0.5) < 0.5 - EPSILON
    size = np.abs(found - images)[inside] / EPSILON
    assert size.min() > 0.25 - 1e-4
    assert np.isclose(size, 1, atol=1e-4).mean() == pytest.approx(5 / 8, abs=4 * np.sqrt(15 / 64 / inside.sum()))


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_other_losses_are_ascended(network, images, loss):
    labels = network(images, training=False).numpy().argmax(1)

    def margin(x):
        logits = network(x, training=False).numpy()
        own = logits[range(7), labels].copy()
        logits[range(7), labels] = -np.inf
        return logits.max(1) - own

    adversarial = attacks.BIM(epsilon=0.05, loss=loss)(network, images, labels)
    assert np.all(margin(adversarial) > margin(images))


def test_the_graph_does_not_grow_with_the_steps(network, images, labels):
    def nodes(steps):
        attack = attacks.PGD(epsilon=0.1, steps=steps, restarts=2)
        function = tf.function(attack.__call__).get_concrete_function(network, tf.constant(images), tf.constant(labels))
        definition = function.graph.as_graph_def()
        return sum(len(inner.node_def) for inner in definition.library.function) + len(definition.node)

    assert nodes(100) == nodes(2)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"steps": 0}, "steps must be at least 1. Received: steps=0"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"momentum": -1.0}, "momentum must be at least 0"),
        ({"restarts": 3}, "Restarts need random_start=True. Received: restarts=3"),
        ({"loss": "cross_entropi"}, "Unknown loss. Did you mean 'cross_entropy'"),
        ({"transforms": ["input_divers"]}, "Unknown transform. Did you mean 'input_diversity'"),
        ({"transforms": [{"name": "scale_invariance", "copy": 2}]}, "option of transform 'scale_invariance'"),
    ],
)
def test_mistakes_in_a_configuration_are_named(mistake, message):
    with pytest.raises(ValueError, match=message):
        attacks.get("bim", epsilon=0.1, **mistake)


@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.03), (4, None)])
def test_kl_pgd_is_its_formula(network, images, labels, steps, step_size):
    """From the same random start: steps along the sign of the gradient of KL(p(x) || p(x')), each into the ball."""
    attack = attacks.KLPGD(epsilon=EPSILON, steps=steps, step_size=step_size)
    length = step_size or 2.5 * EPSILON / steps
    p = tf.nn.softmax(network(images, training=False))
    # Steps of next to no length leave the start as it was.
    start = attacks.PGD(epsilon=EPSILON, steps=1, step_size=1e-9)(network, images, labels, seed=6)
    x = start.numpy()
    assert np.abs(x - images).max() > 0.9 * EPSILON
    for _ in range(steps):
        point = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(point)
            q = tf.nn.softmax(network(point, training=False))
            divergence = tf.reduce_sum(p * (tf.math.log(p) - tf.math.log(q)))
        x = _clip(x + length * np.sign(tape.gradient(divergence, point)), images)
    crafted = attack(network, images, labels, seed=6)
    _agree(crafted, x)
    # No label has a say in it.
    np.testing.assert_array_equal(crafted, attack(network, images, (labels + 1) % 5, seed=6))


def test_kl_pgd_drives_the_answers_further_apart_than_the_start(network, images, labels):
    def divergence(x):
        p, q = (tf.nn.softmax(network(each, training=False)).numpy() for each in (images, x))
        return (p * np.log(p / q)).sum(1)

    start = attacks.PGD(epsilon=EPSILON, steps=1, step_size=1e-9)(network, images, labels)
    found = divergence(attacks.KLPGD(epsilon=EPSILON)(network, images, labels))
    assert np.all(found > 2 * divergence(start))
    restarted = attacks.KLPGD(epsilon=EPSILON, steps=2, restarts=4)(network, images, labels)
    single = [tf.random.experimental.stateless_fold_in([0, 0], restart) for restart in range(4)]
    each = [divergence(attacks.KLPGD(epsilon=EPSILON, steps=2)(network, images, labels, seed=seed)) for seed in single]
    np.testing.assert_allclose(divergence(restarted), np.max(each, axis=0), rtol=1e-3)


def test_kl_pgd_needs_its_random_start():
    with pytest.raises(ValueError, match=r"has no gradient; use random_start=True. Received: random_start=False"):
        attacks.KLPGD(epsilon=EPSILON, random_start=False)
