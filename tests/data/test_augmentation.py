import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.data import Augmentation

NOTHING = {"flip": False, "shift": 0.0, "rotation": 0.0, "zoom": 0.0, "colour": 0.0}
KEY = tf.constant([5, 6])


@pytest.fixture
def images(picture):
    return np.stack([picture(seed, 24, 24) for seed in range(16)]).astype(np.float32) / 255


def test_nothing_changes_nothing(images):
    np.testing.assert_array_equal(Augmentation(**NOTHING)(images, KEY), images)


def test_same_seed_same_images_whenever_and_whatever_was_drawn_before(images):
    augmentation = Augmentation()
    first = augmentation(images, KEY)
    augmentation(images, tf.constant([9, 9]))
    np.testing.assert_array_equal(augmentation(images, KEY), first)
    np.testing.assert_array_equal(Augmentation()(images, KEY), first)
    # Inside a graph another order of float operations: equal to rounding, not to the bit.
    np.testing.assert_allclose(tf.function(augmentation)(images, KEY), first, atol=1e-5)
    assert np.abs(augmentation(images, tf.constant([5, 7])) - first).mean() > 0.01


def test_flip_mirrors_about_half(images):
    flipped = Augmentation(**{**NOTHING, "flip": True})(np.concatenate([images] * 16), KEY).numpy()
    originals = np.concatenate([images] * 16)
    mirrored = (flipped == originals[:, :, ::-1]).all((1, 2, 3))
    kept = (flipped == originals).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 90 <= mirrored.sum() <= 166  # 128 of 256 expected; 5 standard deviations are 40


@pytest.mark.parametrize("name", ["shift", "rotation", "zoom", "colour"])
def test_each_amount_changes_each_image_by_its_own(images, name):
    amount = {"rotation": 20.0}.get(name, 0.2)
    same = np.stack([images[0]] * 16)
    changed = Augmentation(**{**NOTHING, name: amount})(same, KEY).numpy()
    assert changed.dtype == np.float32
    assert changed.shape == same.shape
    assert (np.abs(changed - same).mean((1, 2, 3)) > 1e-4).all()
    assert len(np.unique(changed.round(5), axis=0)) == 16
    small = Augmentation(**{**NOTHING, name: amount / 20})(same, KEY).numpy()
    assert np.abs(small - same).mean() < np.abs(changed - same).mean() / 4


def test_stays_in_range_and_float32_whatever_the_policy(images):
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        changed = Augmentation(colour=0.9)((images > 0.5).astype(np.float32), KEY)
    finally:
        keras.config.set_dtype_policy(policy)
    assert changed.dtype == tf.float32
    assert float(tf.reduce_min(changed)) >= 0
    assert float(tf.reduce_max(changed)) <= 1


def test_is_a_plain_record_of_its_amounts():
    augmentation = Augmentation(zoom=0.2)
    augmentation(tf.zeros([1, 8, 8, 3]), KEY)
    amounts = {"flip": True, "shift": 0.05, "rotation": 10.0, "zoom": 0.2, "colour": 0.1}
    assert dataclasses.asdict(augmentation) == amounts
    assert Augmentation(**amounts) == augmentation != Augmentation(zoom=0.3)


@pytest.mark.parametrize(("name", "amount"), [("shift", 1.0), ("rotation", 180.0), ("zoom", -0.1), ("colour", 1.5)])
def test_refuses(name, amount):
    with pytest.raises(ValueError, match=rf"`{name}` must be in \[0, .* Received: {amount}"):
        Augmentation(**{name: amount})
