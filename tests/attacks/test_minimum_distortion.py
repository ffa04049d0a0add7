"""Attacks that look for the smallest perturbation: closed forms on a linear network, Foolbox on a curved one."""

from __future__ import annotations

import functools

import foolbox
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks

SHORT = {"rounds": 5, "steps": 200, "step_size": 0.005}
BRIEF = {"rounds": 2, "steps": 3}


def _predicted(network, images):
    return network(images, training=False).numpy().argmax(1).astype("int32")


def _closed_form(linear, images, classes, dual):
    """The distance to the nearest boundary of a linear network."""
    logits, kernel = linear(images).numpy(), linear.layers[-1].kernel.numpy()
    return np.array(
        [
            min((z[c] - z[k]) / np.linalg.norm(kernel[:, c] - kernel[:, k], dual) for k in range(len(z)) if k != c)
            for z, c in zip(logits, classes, strict=True)
        ]
    )


def _distance(adversarial, images, norm):
    flat = (np.asarray(adversarial) - images).reshape(len(images), -1)
    return np.linalg.norm(flat, {"l2": 2, "linf": np.inf}[norm], axis=1)


@pytest.mark.parametrize(
    ("attack", "most"),
    [
        # The overshoot of 2 % is all that DeepFool adds.
        (attacks.DeepFool(), 1.021),
        (attacks.DeepFool(norm="linf"), 1.021),
        # Adam stops short of the optimum, and bisection short of the best constant.
        (attacks.CarliniWagnerL2(rounds=7, steps=400, step_size=0.003), 1.05),
        (attacks.CarliniWagnerLinf(rounds=60, step_size=0.001), 1.12),
        # An estimate of a direction from some hundred decisions is a noisy one.
        (attacks.HopSkipJump(steps=25, evaluations=200), 1.25),
        (attacks.HopSkipJump(steps=25, evaluations=200, norm="linf"), 1.35),
    ],
    ids=lambda value: f"{value.name}-{value.norm}" if isinstance(value, attacks.Attack) else None,
)
def test_the_smallest_perturbation_of_a_linear_network_is_reached(linear, grey, attack, most):
    classes = _predicted(linear, grey)
    assert len(set(classes)) > 1, "HopSkipJump starts from images of another class"
    optimum = _closed_form(linear, grey, classes, {"l2": 2, "linf": 1}[attack.norm])
    adversarial = attack.compiled(linear)(grey, classes)
    assert np.all(_predicted(linear, adversarial) != classes)
    distance = _distance(adversarial, grey, attack.norm)
    assert np.all(distance > 0.999 * optimum)
    # What comes on top is a step of the search itself, where the optimum is hardly longer.
    least = {"l2": 2e-3, "linf": 3e-4}[attack.norm]
    assert np.all(distance < most * optimum + least), (distance, optimum)


@pytest.mark.parametrize(
    "attack",
    # From a random start, the way to the edge is a geometric series: forty steps are enough to end it.
    [attacks.FGSM, functools.partial(attacks.PGD, steps=40, step_size=0.1)],
    ids=["fgsm", "pgd"],
)
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_ball_slightly_larger_than_the_optimum_is_enough_on_two_classes(grey, linear, attack, norm, dual):
    two = tf.keras.Sequential([tf.keras.Input([8, 8, 3]), tf.keras.layers.Flatten(), tf.keras.layers.Dense(2)])
    two.set_weights([weights[..., :2] for weights in linear.get_weights()])
    classes = _predicted(two, grey)
    optimum = _closed_form(two, grey, classes, dual)
    for share, fooled in ((0.99, False), (1.01, True)):
        adversarial = attack(epsilon=0.1, norm=norm).compiled(two)(grey, classes, epsilon=share * optimum)
        np.testing.assert_array_equal(_predicted(two, adversarial) != classes, fooled)


def test_fewest_pixels_of_a_linear_network(linear, grey):
    classes = _predicted(linear, grey)
    kernel, logits = linear.layers[-1].kernel.numpy().reshape(8, 8, 3, 4), linear(grey).numpy()
    fewest = []
    for x, z, c in zip(grey, logits, classes, strict=True):
        counts = []
        for k in set(range(4)) - {c}:
            toward = kernel[..., k] - kernel[..., c]
            # Each pixel's most, at an end of the range in every channel; the most helpful pixels first.
            gains = np.sort(np.maximum(toward * (1 - x), -toward * x).sum(-1).ravel())[::-1]
            counts.append(1 + np.searchsorted(np.cumsum(gains), z[c] - z[k]))
        fewest.append(min(counts))
    adversarial = attacks.CarliniWagnerL0().compiled(linear)(grey, classes).numpy()
    pixels = np.count_nonzero(np.abs(adversarial - grey).max(-1), axis=(1, 2))
    assert np.all(_predicted(linear, adversarial) != classes)
    assert np.all(pixels >= fewest)
    # Pixels are taken away one by one at the end, greedily.
    assert np.all(pixels <= np.array(fewest) + 2), (pixels, fewest)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (attacks.DeepFool(candidates=4), foolbox.attacks.L2DeepFoolAttack(candidates=5)),
        (attacks.DeepFool(candidates=4, norm="linf"), foolbox.attacks.LinfDeepFoolAttack(candidates=5)),
        (
            attacks.CarliniWagnerL2(rounds=5, steps=60, step_size=0.02, initial_constant=0.1),
            foolbox.attacks.L2CarliniWagnerAttack(
                binary_search_steps=5, steps=60, stepsize=0.02, initial_const=0.1, confidence=0
            ),
        ),
    ],
    ids=["deepfool-l2", "deepfool-linf", "cw_l2"],
)
def test_no_worse_than_foolbox(network, images, ours, theirs):
    classes = _predicted(network, images)
    model = foolbox.TensorFlowModel(network, bounds=(0, 1))
    _, crafted, success = theirs(model, tf.constant(images), tf.constant(classes, tf.int64), epsilons=None)
    adversarial = ours.compiled(network)(images, classes)
    success = success.numpy() & (_predicted(network, crafted) != classes)
    assert np.all((_predicted(network, adversarial) != classes) >= success)
    distance, theirs_ = _distance(adversarial, images, ours.norm), _distance(crafted, images, ours.norm)
    # DeepFool takes the same way. Adam's is chaotic in its last digits, and each stops early at its own whole batch.
    tolerance = 1.05 if ours.name == "cw_l2" else 1.001
    assert np.all(distance[success] < tolerance * theirs_[success]), distance / theirs_


@pytest.mark.parametrize(
    "attack",
    [
        attacks.DeepFool(label_source="target"),
        attacks.CarliniWagnerL2(label_source="target", initial_constant=1.0, **SHORT),
        attacks.CarliniWagnerLinf(label_source="target", **SHORT),
        attacks.CarliniWagnerL0(label_source="target", **SHORT),
    ],
    ids=lambda attack: attack.name,
)
def test_targets_are_reached(linear, grey, attack):
    targets = (_predicted(linear, grey) + 1) % 4
    outcome = tf.function(lambda images, labels: attack.outcome(linear, images, labels))(grey, targets)
    assert np.all(outcome.success)
    np.testing.assert_array_equal(_predicted(linear, outcome.images), targets)


def test_confidence_is_the_gap_of_the_logits(linear, grey):
    classes = _predicted(linear, grey)
    attack = attacks.CarliniWagnerL2(confidence=0.5, initial_constant=1.0, **SHORT)
    logits = linear(attack.compiled(linear)(grey, classes)).numpy()
    own = logits[range(6), classes].copy()
    logits[range(6), classes] = -np.inf
    assert np.all(logits.max(1) - own > 0.5 - 1e-3)


@pytest.mark.parametrize(
    "attack",
    [
        attacks.DeepFool(),
        attacks.CarliniWagnerL2(**BRIEF),
        attacks.CarliniWagnerLinf(**BRIEF),
        attacks.CarliniWagnerL0(**BRIEF),
        attacks.HopSkipJump(steps=2, evaluations=5),
    ],
    ids=lambda attack: attack.name,
)
def test_what_is_wrong_already_is_left_alone(linear, grey, attack):
    wrong = (_predicted(linear, grey) + 1) % 4
    outcome = attack.outcome(linear, grey, wrong)
    assert np.all(outcome.success)
    np.testing.assert_array_equal(outcome.images, grey)


def test_a_cap_binds_and_infinity_is_none(linear, grey):
    classes = _predicted(linear, grey)
    free = attacks.DeepFool().outcome(linear, grey, classes)
    cap = float(np.median(free.distortion))
    capped = attacks.DeepFool(epsilon=cap).outcome(linear, grey, classes)
    assert np.all(capped.distortion <= cap * (1 + 1e-5))
    assert np.all(np.asarray(capped.success)[free.distortion <= cap])
    # The overshoot is what may be taken away.
    assert not np.any(np.asarray(capped.success)[free.distortion > 1.03 * cap])
    with pytest.raises(ValueError, match="non-negative"):
        attacks.PGD(epsilon=float("inf"))


def test_no_start_and_no_success_are_reported(grey):
    def always_two(x, training=False):
        return tf.one_hot(tf.fill([tf.shape(x)[0]], 2), 4) + 0 * tf.reduce_sum(x, [1, 2, 3], keepdims=False)[:, None]

    always_two.gives_logits = True
    hop_skip_jump = attacks.HopSkipJump(steps=2, evaluations=5, starts=3)
    for attack in (hop_skip_jump, attacks.CarliniWagnerL2(**BRIEF), attacks.DeepFool(steps=3)):
        outcome = attack.outcome(always_two, grey, np.full(6, 2))
        assert not np.any(outcome.success)
        np.testing.assert_array_equal(outcome.images, grey)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: attacks.DeepFool(steps=0),
        lambda: attacks.DeepFool(overshoot=-0.1),
        lambda: attacks.CarliniWagnerL2(step_size=0.0),
        lambda: attacks.CarliniWagnerLinf(shrink=1.0),
        lambda: attacks.CarliniWagnerL0(share=0.0),
        lambda: attacks.CarliniWagnerL2(norm="linf"),
        lambda: attacks.HopSkipJump(evaluations=0),
    ],
)
def test_numbers_out_of_range_are_named(mistake):
    with pytest.raises(ValueError, match="Received"):
        mistake()
