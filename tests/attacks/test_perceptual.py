from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satm_tf import attacks


def test_distances_by_hand():
    images = np.full([3, 16, 16, 3], 0.5, "float32")
    adversarial = images.copy()
    adversarial[0, 0, 0, 0] += 0.25
    adversarial[0, 5, 5] -= 0.125
    adversarial[1] += 0.125
    found = attacks.distortion(adversarial, images)
    np.testing.assert_allclose(found["linf"], [0.25, 0.125, 0])
    np.testing.assert_allclose(found["l2"], [np.sqrt(0.25**2 + 3 * 0.125**2), 0.125 * np.sqrt(768), 0], rtol=1e-6)
    np.testing.assert_array_equal(found["l0"], [2, 256, 0])
    # Wang et al., Eq. 13, for constant images: only the luminance term is left.
    luminance = (2 * 0.5 * 0.625 + 1e-4) / (0.5**2 + 0.625**2 + 1e-4)
    np.testing.assert_allclose(found["ssim"][1:], [luminance, 1], rtol=1e-3)
    assert found["ssim"][0] < 1


def test_images_smaller_than_the_window_have_a_similarity():
    images = np.random.default_rng(0).uniform(size=[2, 8, 8, 3]).astype("float32")
    np.testing.assert_allclose(attacks.distortion(images, images)["ssim"], 1, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 0.3), st.integers(0, 9999), st.sampled_from([2, np.inf]))
def test_rounding_leaves_no_ball(epsilon, seed, order):
    generator = np.random.default_rng(seed)
    clean = (generator.integers(0, 256, [2, 4, 4, 3]) / 255).astype("float32")
    step = generator.normal(size=clean.shape)
    step *= epsilon / np.linalg.norm(step.reshape(2, -1), order, axis=1).reshape(2, 1, 1, 1)
    adversarial = np.clip(clean + step, 0, 1).astype("float32")
    written = attacks.as_uint8(adversarial, clean)
    assert written.dtype == np.uint8
    distance = np.linalg.norm((written / 255 - clean).reshape(2, -1), order, axis=1)
    # A thousandth of a level a pixel is allowed for float32 images whose values should be whole levels.
    assert np.all(distance <= epsilon + 1e-3 / 255 * (np.sqrt(48) if order == 2 else 1) + 1e-6)
    # No more than one level is lost.
    assert np.all(np.abs(written / 255 - adversarial) <= 1.001 / 255)


def test_levels_stay_what_they_are_and_a_whole_epsilon_of_levels_is_kept():
    levels = np.arange(256, dtype="uint8").reshape(1, 16, 16, 1)
    clean = levels.astype("float32") / np.float32(255)
    np.testing.assert_array_equal(attacks.as_uint8(clean, clean), levels)
    adversarial = np.clip(clean + np.float32(8 / 255), 0, 1)
    np.testing.assert_array_equal(attacks.as_uint8(adversarial, clean), np.minimum(levels.astype(int) + 8, 255))


def test_clean_images_off_the_levels_are_refused_until_quantised():
    images = np.random.default_rng(0).uniform(size=[2, 4, 4, 3]).astype("float32")
    with pytest.raises(ValueError, match=r"attacks\.quantise"):
        attacks.as_uint8(images, images)
    quantised = attacks.quantise(images)
    np.testing.assert_allclose(quantised, images, atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(attacks.as_uint8(quantised, quantised), np.round(images * 255))
