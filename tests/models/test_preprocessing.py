"""Preprocessing: from images in [0, 1] to what a backbone was trained on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.models import Preprocessing


@pytest.fixture
def images():
    return np.random.default_rng(0).random((2, 6, 8, 3)).astype("float32")


def test_nothing_asked_changes_nothing(images):
    np.testing.assert_array_equal(Preprocessing()(images), images)


def test_scale_and_offset_follow_the_order_of_the_backbone(images):
    layer = Preprocessing(scale=(1.0, 2.0, 3.0), offset=(0.0, 10.0, 20.0), reverse_channels=True)
    expected = images[..., ::-1] * [1, 2, 3] + [0, 10, 20]
    np.testing.assert_allclose(layer(images), expected, rtol=1e-6)  # one product and one sum in float32


def test_resize_is_bilinear(images):
    layer = Preprocessing(size=(12, 16))
    resized = layer(images).numpy()
    assert resized.shape == (2, 12, 16, 3) == layer.compute_output_shape((2, 6, 8, 3))
    # Half-pixel centres: a pixel of the doubled image lies a quarter of the way from one neighbour to the next.
    np.testing.assert_allclose(resized[:, 1, 0], 0.75 * images[:, 0, 0] + 0.25 * images[:, 1, 0], rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_it_stays_in_float32_under_mixed_precision(images, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        output = Preprocessing(scale=255.0, offset=-127.5)(images)
    finally:
        keras.config.set_dtype_policy(before)
    assert output.dtype == tf.float32
    np.testing.assert_allclose(output, images * 255 - 127.5, atol=1e-4)


def test_round_trip_through_its_config(images):
    layer = Preprocessing(scale=(1.0, 2.0, 3.0), offset=-1.0, reverse_channels=True, size=(5, 5))
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()
    np.testing.assert_array_equal(copy(images), layer(images))
