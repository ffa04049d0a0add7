from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from satm_tf.attacks.norms import NORMS

ORDER = {"linf": np.inf, "l2": 2}


def _lengths(x: np.ndarray, norm: str) -> np.ndarray:
    if norm == "l0":
        return np.count_nonzero(np.abs(x).max(-1), axis=(1, 2))
    return np.linalg.norm(x.reshape(len(x), -1).astype("float64"), ORDER[norm], axis=1)


@pytest.mark.parametrize("norm", NORMS)
@settings(deadline=None, max_examples=25)
@given(scale=st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 1e6]), epsilon=st.floats(0, 3), seed=st.integers(0, 999))
def test_projection_is_inside_idempotent_and_leaves_the_inside_alone(norm, scale, epsilon, seed):
    x = (scale * np.random.default_rng(seed).normal(size=[3, 4, 5, 3])).astype("float32")
    projected = NORMS[norm].project(x, epsilon).numpy()
    largest = np.ceil(epsilon) if norm == "l0" else epsilon
    assert np.all(_lengths(projected, norm) <= largest * (1 + 1e-6))
    np.testing.assert_allclose(NORMS[norm].project(projected, epsilon), projected, rtol=1e-5)
    inside = _lengths(x, norm) <= epsilon
    np.testing.assert_allclose(projected[inside], x[inside], rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_length_is_numpys(norm):
    x = np.random.default_rng(1).normal(size=[3, 4, 5, 3]).astype("float32")
    x[:, :2] = 0
    np.testing.assert_allclose(NORMS[norm].length(x).numpy().ravel(), _lengths(x, norm), rtol=1e-6)


@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e20])
def test_the_steepest_step_has_unit_norm_and_no_other_step_rises_faster(norm, scale):
    generator = np.random.default_rng(2)
    gradient = (scale * generator.normal(size=[3, 4, 5, 3])).astype("float32")
    step = NORMS[norm].steepest(gradient).numpy()
    np.testing.assert_allclose(_lengths(step, norm), 1, rtol=1e-5)
    other = generator.normal(size=[100, *gradient.shape])
    other /= np.linalg.norm(other.reshape(100, 3, -1), ORDER[norm], axis=-1)[:, :, None, None, None]
    assert np.all((step * (gradient / scale)).sum((1, 2, 3)) >= (other * (gradient / scale)).sum((2, 3, 4)))
    np.testing.assert_array_equal(NORMS[norm].steepest(tf.zeros([1, 2, 2, 3])), np.zeros([1, 2, 2, 3]))


@pytest.mark.parametrize("norm", ORDER)
def test_random_points_fill_the_unit_ball(norm):
    points = NORMS[norm].random([4000, 1, 1, 3], [1, 2]).numpy()
    lengths = _lengths(points, norm)
    assert lengths.max() <= 1 + 1e-6
    # Uniform in a ball of three dimensions: half of it lies within 2 ** (-1/3); four deviations of the share are 3.2 %.
    assert abs(np.mean(lengths < 0.5 ** (1 / 3)) - 0.5) < 0.032
    np.testing.assert_allclose(points.mean(0), 0, atol=0.04)


def test_the_l0_ball_keeps_the_pixels_that_changed_most():
    x = np.zeros([1, 2, 2, 3], "float32")
    x[0, 0, 0, 1], x[0, 0, 1, 2], x[0, 1, 1, 0] = -3, 1, 2
    kept = NORMS["l0"].project(x, 2.0).numpy()
    x[0, 0, 1] = 0
    np.testing.assert_array_equal(kept, x)
