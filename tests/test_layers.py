import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.layers import GradientReversal


@pytest.mark.parametrize("strength", [0.0, 0.3, 2.0])
def test_output_is_the_input_and_gradient_is_negated_and_scaled(strength):
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 5)), tf.float32)
    upstream = tf.constant(np.random.default_rng(1).normal(size=(4, 5)), tf.float32)
    layer = GradientReversal(strength)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    np.testing.assert_array_equal(y, x)
    # One multiplication: equal to the bit.
    np.testing.assert_array_equal(tape.gradient(y, x, upstream), -np.float32(strength) * upstream)


def test_a_call_may_give_its_own_strength_inside_a_graph():
    layer = GradientReversal()

    @tf.function
    def gradient(x, strength):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x, strength=strength))
        return tape.gradient(y, x)

    assert gradient(tf.ones([2]), tf.constant(0.25)).numpy().tolist() == [-0.25, -0.25]


def test_half_precision_passes():
    x = tf.ones([2], tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = GradientReversal(0.5, dtype="bfloat16")(x)
    gradient = tape.gradient(y, x)
    assert (y.dtype, gradient.dtype) == (tf.bfloat16, tf.bfloat16)
    assert gradient.numpy().astype(np.float32).tolist() == [-0.5, -0.5]


def test_config_round_trip_and_bad_strength():
    layer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(GradientReversal(0.7)))
    assert layer.strength == 0.7
    with pytest.raises(ValueError, match="Received: -1"):
        GradientReversal(-1)
