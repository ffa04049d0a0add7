"""FAB-T: its projection beside independent solvers, the attack beside closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linprog, minimize

from satm_tf import attacks
from satm_tf.attacks.fab import to_plane
from tests.attacks.test_minimum_distortion import _closed_form, _distance, _predicted

SHAPE = (2, 2, 3)
SIZE = 12


def _linf_by_linear_program(x, normal, rise):
    """The least t with |d| <= t, <normal, d> = rise, 0 <= x + d <= 1."""
    identity, ones = np.eye(SIZE), np.ones([SIZE, 1])
    solution = linprog(
        np.append(np.zeros(SIZE), 1.0),
        A_ub=np.block([[identity, -ones], [-identity, -ones]]),
        b_ub=np.zeros(2 * SIZE),
        A_eq=np.append(normal, 0.0)[None],
        b_eq=[rise],
        bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
    )
    assert solution.success
    return solution.fun


def _l2_by_quadratic_program(x, normal, rise):
    # SLSQP wants a constraint whose size is that of the variables.
    normal, rise = normal / np.abs(normal).max(), rise / np.abs(normal).max()
    solution = minimize(
        lambda d: d @ d,
        np.zeros(SIZE),
        jac=lambda d: 2 * d,
        bounds=list(zip(-x, 1 - x, strict=True)),
        constraints={"type": "eq", "fun": lambda d: normal @ d - rise, "jac": lambda d: normal},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert solution.success
    return np.sqrt(solution.fun)


SOLVERS = {"linf": (_linf_by_linear_program, np.inf), "l2": (_l2_by_quadratic_program, 2)}


@pytest.mark.parametrize("norm", SOLVERS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.97], ids="{:.0%} of what is possible".format)
def test_the_way_to_a_plane_is_the_shortest_one(norm, scale, share):
    """From free pixels only to almost all at the ends of the range, on both sides of the plane."""
    generator = np.random.default_rng(5)
    x = generator.uniform(0, 1, [20, SIZE]).astype("float32")
    # Some pixels start at the ends, and some do not matter to the plane.
    x[:, 0], x[:, 1] = 0, 1
    normal = (scale * generator.normal(size=[20, SIZE])).astype("float32")
    normal[:, 2] = 0
    side = np.where(np.arange(20) % 2, 1, -1)
    possible = np.maximum(side[:, None] * normal * (1 - x), -side[:, None] * normal * x).sum(1)
    rise = (side * share * possible).astype("float32")
    images = (each.reshape(20, *SHAPE) for each in (x, normal))
    way = to_plane(*map(tf.constant, images), tf.constant(rise[:, None, None, None]), norm).numpy().reshape(20, SIZE)
    assert np.all((x + way >= -1e-6) & (x + way <= 1 + 1e-6))
    # Sums of twelve float32 numbers.
    np.testing.assert_allclose((way * normal).sum(1), rise, rtol=1e-5, atol=1e-6 * scale)
    solver, order = SOLVERS[norm]
    shortest = [
        solver(*problem) for problem in zip(*(each.astype("float64") for each in (x, normal, rise)), strict=True)
    ]
    # The solvers stop at about 1e-6 of the optimum.
    np.testing.assert_allclose(np.linalg.norm(way, order, axis=1), shortest, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("norm", SOLVERS)
def test_a_plane_out_of_reach_is_approached_and_none_is_left_alone(norm):
    x = np.random.default_rng(6).uniform(0, 1, [2, *SHAPE]).astype("float32")
    normal = np.random.default_rng(7).normal(size=[2, *SHAPE]).astype("float32")
    normal[1] = 0
    way = to_plane(x, normal, tf.fill([2, 1, 1, 1], 1e3), norm).numpy()
    np.testing.assert_allclose((x + way)[0], normal[0] > 0, atol=1e-6)
    np.testing.assert_array_equal(way[1], 0)
    # The squares of such a normal would be zero in float32.
    tiny = to_plane(x[:1], 1e-30 * normal[:1], 1e-30 * tf.ones([1, 1, 1, 1]), norm)
    np.testing.assert_allclose(tiny, to_plane(x[:1], normal[:1], tf.ones([1, 1, 1, 1]), norm), rtol=1e-4)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_smallest_perturbation_of_a_linear_network_is_reached(linear, grey, norm, dual):
    classes = _predicted(linear, grey)
    optimum = _closed_form(linear, grey, classes, dual)
    adversarial = attacks.FABTargeted(norm=norm, steps=20).compiled(linear)(grey, classes)
    assert np.all(_predicted(linear, adversarial) != classes)
    distance = _distance(adversarial, grey, norm)
    assert np.all(distance > 0.999 * optimum)
    # A step ends beyond the plane by 5 % of its own length, which is a tenth of the way; and by 5 % of the way from the
    # clean image, with a weight of that tenth.
    assert np.all(distance < 1.01 * optimum), distance / optimum


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pixels_at_the_ends_of_the_range_are_taken_into_account(linear, norm):
    """Images of black and white, where half of the pixels cannot go where the boundary is: the solvers know how far."""
    black_and_white = np.random.default_rng(9).integers(0, 2, [6, 8, 8, 3]).astype("float32")
    classes, kernel = _predicted(linear, black_and_white), linear.layers[-1].kernel.numpy()
    optimum = []
    for x, z, c in zip(black_and_white.reshape(6, -1), linear(black_and_white).numpy(), classes, strict=True):
        lengths = []
        for k in set(range(4)) - {c}:
            # Only pixels that can move: from 0 up or from 1 down.
            toward = kernel[:, k] - kernel[:, c]
            helpful = np.abs(toward[(toward > 0) == (x == 0)])
            lengths.append((z[c] - z[k]) / (helpful.sum() if norm == "linf" else np.linalg.norm(helpful)))
        optimum.append(min(lengths))
    adversarial = attacks.FABTargeted(norm=norm, steps=20).compiled(linear)(black_and_white, classes)
    assert np.all(_predicted(linear, adversarial) != classes)
    distance = _distance(adversarial, black_and_white, norm)
    assert np.all(distance < 1.01 * np.array(optimum)), distance / optimum


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_curved_network_it_comes_nearer_than_deepfool(network, images, norm):
    classes = _predicted(network, images)
    adversarial = attacks.FABTargeted(norm=norm, steps=50).compiled(network)(images, classes)
    deepfool = attacks.DeepFool(norm=norm).compiled(network)(images, classes)
    assert np.all(_predicted(network, adversarial) != classes)
    distance, other = _distance(adversarial, images, norm), _distance(deepfool, images, norm)
    # Both end slightly beyond the boundary, by less than 1 % as above.
    assert np.all(distance <= 1.01 * other), distance / other
    assert np.mean(distance / other) < 0.98


def test_what_is_wrong_already_and_what_is_never_found_are_left_alone(linear, grey, images):
    wrong = (_predicted(linear, grey) + 1) % 4
    outcome = attacks.FABTargeted(steps=2).outcome(linear, grey, wrong)
    assert np.all(outcome.success)
    np.testing.assert_array_equal(outcome.images, grey)
    constant = lambda x, training=False: tf.constant([[0.0, 2.0]]) + 0 * tf.reduce_sum(x, [1, 2])[:, :1]  # noqa: E731
    outcome = attacks.FABTargeted(steps=2).outcome(constant, images, np.ones(7))
    assert not np.any(outcome.success)
    np.testing.assert_array_equal(outcome.images, images)


@pytest.mark.parametrize(
    "option", [{"steps": 0}, {"targets": 0}, {"alpha_max": 1.5}, {"eta": 0.9}, {"beta": 1.0}], ids=str
)
def test_numbers_out_of_range_are_named(option):
    with pytest.raises(ValueError, match="Received: .*" + next(iter(option))):
        attacks.FABTargeted(**option)
    with pytest.raises(ValueError, match="label source 'label' or 'predicted' only"):
        attacks.FABTargeted(label_source="target")
