"""Fused batch normalisation against Keras's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.models.normalization import BatchNormalization, fuse_batch_norm

# float32: two ways to sum 8 * 8 * 8 numbers. Half precisions: one rounding of the output (8 and 11 bits of mantissa);
# the statistics are float32 in both.
TOLERANCES = {"float32": 1e-5, "mixed_bfloat16": 2**-7, "mixed_float16": 2**-10}
OPTIONS = [
    {},
    {"scale": False},
    {"center": False},
    {"epsilon": 1.001e-5, "momentum": 0.9},
    {"epsilon": 1e-4, "axis": 3},
]
RENORM = pytest.param(
    {"renorm": True},
    (8, 4, 4, 5),
    marks=pytest.mark.skipif(
        "renorm" not in keras.layers.BatchNormalization().get_config(), reason="a newer Keras has it"
    ),
)


def pair(**options):
    layers = [kind(**options) for kind in (BatchNormalization, keras.layers.BatchNormalization)]
    rng = np.random.default_rng(0)
    for layer in layers:
        layer.build((None, 8, 8, 5))
    values = [rng.uniform(0.5, 1.5, w.shape) for w in layers[0].weights]
    for layer in layers:
        layer.set_weights(values)
    return layers


def inputs(shape=(8, 8, 8, 5)):
    return tf.constant(np.random.default_rng(1).normal(3.0, 2.0, shape), tf.float32)


def steps(layer, images):
    """Outputs, gradients and weights after two steps in training."""
    layer(images, training=True)
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images, training=True)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
    gradients = tape.gradient(loss, [images, *layer.trainable_weights])
    return outputs, gradients, layer.weights


@pytest.mark.parametrize("policy", TOLERANCES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_training_is_that_of_keras(options, policy):
    fused, plain = pair(dtype=policy, **options)
    outputs, gradients, weights = steps(fused, inputs())
    expected_outputs, expected_gradients, expected_weights = steps(plain, inputs())
    tolerance = TOLERANCES[policy]
    assert outputs.dtype == expected_outputs.dtype
    np.testing.assert_allclose(outputs, expected_outputs, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=4 * tolerance * scale)  # a gradient is three such products
    for ours, theirs in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2 * tolerance + 1e-5)
    assert [w.name for w in weights] == [w.name for w in expected_weights]


def test_training_takes_the_kernel():
    fused, _ = pair()
    graph = tf.function(lambda x: fused(x, training=True)).get_concrete_function(inputs()).graph
    assert "FusedBatchNormV3" in {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("frozen", [False, True])
def test_inference_and_frozen_layers_are_keras_to_the_bit(frozen):
    fused, plain = pair()
    fused.trainable = plain.trainable = not frozen
    before = [w.numpy() for w in fused.weights]
    np.testing.assert_array_equal(fused(inputs(), training=frozen), plain(inputs(), training=frozen))
    for weight, value in zip(fused.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, (8, 5)), ({"epsilon": 1e-6}, (8, 4, 4, 5)), ({"axis": 1}, (8, 5, 4, 4)), RENORM],
)
def test_where_the_kernel_does_not_apply_it_is_keras_to_the_bit(options, shape):
    fused, plain = (kind(**options) for kind in (BatchNormalization, keras.layers.BatchNormalization))
    np.testing.assert_array_equal(fused(inputs(shape), training=True), plain(inputs(shape), training=True))
    for ours, theirs in zip(fused.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fusing_a_model_keeps_names_order_and_outputs():
    model = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    fused = fuse_batch_norm(model)
    kinds = {type(layer) for layer in fused.layers}
    assert BatchNormalization in kinds
    assert keras.layers.BatchNormalization not in kinds
    assert [layer.name for layer in fused.layers[1:]] == [layer.name for layer in model.layers[1:]]  # but the input
    fused.set_weights(model.get_weights())
    images = inputs((2, 32, 32, 3))
    np.testing.assert_array_equal(fused(images), model(images))
