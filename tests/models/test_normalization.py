"""Fused batch normalisation against Keras's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.models import ImageClassifier, Preprocessing
from satm_tf.models.normalization import BatchNormalization, fuse_batch_norm, restore_batch_norm

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


@pytest.mark.parametrize(
    ("options", "policy"),
    [*((each, "float32") for each in OPTIONS[1:]), *(({}, policy) for policy in TOLERANCES)],
    ids=str,
)
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
    x = inputs_ = keras.Input((8, 8, 3))
    for _ in range(2):
        y = keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 3, padding="same")(x))
        x = keras.layers.add([x, keras.layers.ReLU()(y)])
    model = keras.Model(inputs_, x)
    fused = fuse_batch_norm(model)
    kinds = {type(layer) for layer in fused.layers}
    assert BatchNormalization in kinds
    assert keras.layers.BatchNormalization not in kinds
    assert [layer.name for layer in fused.layers[1:]] == [layer.name for layer in model.layers[1:]]  # but the input
    fused.set_weights(model.get_weights())
    images = inputs((2, 8, 8, 3))
    np.testing.assert_array_equal(fused(images), model(images))


IMAGES = np.random.default_rng(2).random((40, 12, 12, 3)).astype("float32")


@pytest.fixture
def folded():
    """A classifier as published weights leave it: statistics of 0 and 1 that no image has."""
    images = x = keras.Input((12, 12, 3))
    for filters, kind in ((6, BatchNormalization), (8, keras.layers.BatchNormalization)):
        x = keras.layers.Conv2D(filters, 3, use_bias=False)(x)
        x = keras.layers.ReLU(6.0)(kind()(x))
    network = ImageClassifier(
        keras.Model(images, x), 3, image_shape=(12, 12, 3), preprocessing=Preprocessing(scale=20.0, offset=-5.0)
    )
    rng = np.random.default_rng(0)
    for layer in norms(network):
        size = layer.gamma.shape
        layer.set_weights([rng.uniform(-0.5, 0.5, size), rng.uniform(1, 2, size), np.zeros(size), np.ones(size)])
    return network


def norms(network):
    return [layer for layer in network.backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]


def test_restored_statistics_are_those_of_the_images_and_change_no_answer(folded):
    others = np.random.default_rng(3).random((5, 12, 12, 3)).astype("float32")
    before = folded(others).numpy()
    restore_batch_norm(folded, IMAGES, batch_size=16)
    # float32 on activations of up to 6, through two layers.
    np.testing.assert_allclose(folded(others), before, atol=5e-5)
    layers = norms(folded)
    inputs = keras.Model(folded.backbone.inputs, [layer.input for layer in layers])(folded.preprocessing(IMAGES))
    for layer, values in zip(layers, inputs, strict=True):
        rows = values.numpy().reshape(-1, values.shape[-1]).astype("float64")
        np.testing.assert_allclose(layer.moving_mean, rows.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.moving_variance, rows.var(0), rtol=1e-4)


def test_training_starts_from_the_function_only_where_statistics_are_restored(folded):
    expected = folded(IMAGES).numpy()
    weights = folded.get_weights()
    assert np.abs(folded(IMAGES, training=True) - expected).max() > 0.1
    folded.set_weights(weights)
    restore_batch_norm(folded, IMAGES)
    np.testing.assert_allclose(folded(IMAGES, training=True), expected, atol=5e-5)


def test_a_channel_without_variance_keeps_its_answers(folded):
    """A channel that is dead on these images must not be on others."""
    kernel = folded.backbone.layers[1]
    kernel.set_weights([kernel.kernel.numpy() * (np.arange(6) != 2)])
    before = folded(IMAGES).numpy()
    restore_batch_norm(folded, IMAGES)
    np.testing.assert_allclose(folded(IMAGES), before, atol=5e-5)


@pytest.mark.parametrize("images", [IMAGES[:0], IMAGES[:, :8], IMAGES * 255, IMAGES[0]])
def test_images_that_do_not_fit_are_refused(folded, images):
    with pytest.raises(ValueError, match=r"Images are \[count, 12, 12, 3\], at least one, in \[0, 1\]. Received"):
        restore_batch_norm(folded, images)


def test_a_layer_without_scale_is_refused(folded):
    norms(folded)[1].scale = False
    with pytest.raises(ValueError, match=r"needs scale, shift and channels last. Received: layer 'batch_norm"):
        restore_batch_norm(folded, IMAGES)
