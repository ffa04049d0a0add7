"""ImageClassifier: what it promises whatever backbone it wraps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.models import ImageClassifier, Preprocessing


@keras.saving.register_keras_serializable(package="test")
def square(x):
    return x * x


@pytest.fixture
def images():
    return tf.constant(np.random.default_rng(0).random((3, 20, 20, 3)), tf.float32)


def small_backbone(activation="relu", size=(20, 20)):
    inputs = keras.Input((*size, 3))
    return keras.Model(inputs, keras.layers.Conv2D(4, 3, activation=activation)(inputs))


def test_logits_are_float32_of_one_row_an_image(images):
    network = ImageClassifier(small_backbone(), 5, image_shape=(20, 20, 3))
    logits = network(images)
    assert network.built
    assert logits.shape == (3, 5)
    assert logits.dtype == tf.float32
    assert (network.num_classes, network.image_shape, network.feature_size) == (5, (20, 20, 3), 4)


@pytest.mark.parametrize(("pooling", "size"), [("avg", 4), ("max", 4), ("flatten", 18 * 18 * 4)])
def test_pooling_decides_the_features(images, pooling, size):
    network = ImageClassifier(small_backbone(), 5, image_shape=(20, 20, 3), pooling=pooling)
    map_ = network.backbone(images).numpy()
    expected = {"avg": map_.mean((1, 2)), "max": map_.max((1, 2)), "flatten": map_.reshape(3, -1)}[pooling]
    features = network.features(images)
    assert network.feature_size == size
    np.testing.assert_allclose(features, expected, rtol=1e-5)  # a mean of 324 float32 values in another order


def test_the_features_are_what_feeds_the_classification_layer(images):
    network = ImageClassifier(small_backbone(), 5, image_shape=(20, 20, 3), dropout=0.5)
    features = network.features(images)
    kernel, bias = (w.numpy() for w in network.get_layer("classification").weights)
    assert kernel.shape == (network.feature_size, 5)
    np.testing.assert_array_equal(network(images), network.classify(features))
    np.testing.assert_allclose(network(images), features.numpy() @ kernel + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("pooling", ["avg", "max", "flatten"])
def test_mixed_precision_rounds_nothing_but_the_backbone(images, pooling, policy):
    """Around a backbone that stays in float32, a half-precision policy must change no bit: not pixels, not features."""
    backbone = small_backbone()
    expected = ImageClassifier(backbone, 5, image_shape=(20, 20, 3), pooling=pooling, dropout=0.5)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        network = ImageClassifier(backbone, 5, image_shape=(20, 20, 3), pooling=pooling, dropout=0.5)
    finally:
        keras.config.set_dtype_policy(before)
    network.set_weights(expected.get_weights())
    assert network.dtype_policy.name == policy
    np.testing.assert_array_equal(network(images), expected(images))


def test_dropout_acts_on_the_features_in_training_only(images):
    network = ImageClassifier(small_backbone(), 5, image_shape=(20, 20, 3), dropout=0.9)
    features = network.features(images, training=True)
    np.testing.assert_array_equal(features, network.features(images, training=False))
    np.testing.assert_array_equal(network(images, training=False), network.classify(features, training=False))
    assert np.any(network.classify(features, training=True) != network.classify(features, training=False))


def test_a_null_class_leaves_the_logits_and_survives_saving(tmp_path, images):
    network = ImageClassifier(small_backbone(), 5, image_shape=(20, 20, 3), dropout=0.5)
    with_null = network.with_null_class()
    features = network.features(images)
    np.testing.assert_allclose(with_null(images), network(images), atol=1e-6)  # products of another shape
    assert network.answers(features)[1] is None
    assert np.all(tf.sigmoid(with_null.answers(features)[1]) < 1e-3)
    kernel, bias = with_null._classification.get_weights()
    kernel[:, -1], bias[-1] = kernel[:, 1], 0.5
    with_null._classification.set_weights([kernel, bias])
    expected = tf.nn.softmax(features @ kernel + bias)
    np.testing.assert_allclose(tf.sigmoid(with_null.answers(features)[1]), expected[:, -1], rtol=1e-5)
    with_null.with_null_class().save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    assert loaded.null_class
    np.testing.assert_array_equal(loaded(images), with_null(images))
    np.testing.assert_array_equal(loaded.answers(features)[1], with_null.answers(features)[1])
    head = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    with pytest.raises(ValueError, match="Only a linear classification layer"):
        ImageClassifier(small_backbone(), 5, image_shape=(20, 20, 3), head=head, null_class=True)


@pytest.mark.parametrize("name", ["compact_vgg", "compact_resnet"])
def test_a_saved_network_gives_the_same_logits(tmp_path, images, name):
    network = ImageClassifier.from_backbone(name, num_classes=4, image_shape=(20, 20, 3), dropout=0.2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile("sgd", loss, run_eagerly=True)
    network.fit(images, np.array([0, 1, 2]), verbose=0)  # so that the batch statistics are not the initial ones
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(images), network(images))
    for attribute in ("name", "num_classes", "image_shape", "pooling", "dropout", "feature_size"):
        assert getattr(loaded, attribute) == getattr(network, attribute)
    assert loaded.preprocessing.get_config() == network.preprocessing.get_config()


def test_the_record_of_the_initial_weights_survives_saving(tmp_path):
    record = {"weights": "mine.h5", "file": "mine.h5", "sha256": "0" * 64}
    network = ImageClassifier(small_backbone(), 2, image_shape=(20, 20, 3), initial_weights=record)
    network.save(tmp_path / "network.keras")
    assert keras.models.load_model(tmp_path / "network.keras").initial_weights == record


def test_two_networks_of_one_backbone_may_have_own_names():
    names = [
        ImageClassifier.from_backbone("compact_vgg", num_classes=2, name=name).name for name in ("first", "second")
    ]
    assert names == ["first", "second"]
    assert ImageClassifier.from_backbone("compact_vgg", num_classes=2).name == "compact_vgg"


def test_a_users_own_backbone_takes_a_few_lines(images):
    inputs = keras.Input((20, 20, 3))
    own = keras.Model(inputs, keras.layers.Dense(7, activation="relu")(keras.layers.Flatten()(inputs)))
    network = ImageClassifier(own, 3, image_shape=(20, 20, 3), pooling=None)
    assert network(images).shape == (3, 3)
    assert network.feature_size == 7


def test_one_class_only_is_refused():
    with pytest.raises(ValueError, match=r"at least two classes. Received: num_classes=1"):
        ImageClassifier(small_backbone(), 1, image_shape=(20, 20, 3))


def test_an_unknown_pooling_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown pooling. Did you mean 'avg'"):
        ImageClassifier(small_backbone(), 2, image_shape=(20, 20, 3), pooling="avgg")


def test_a_feature_map_without_pooling_is_refused():
    with pytest.raises(ValueError, match=r"needs a pooling"):
        ImageClassifier(small_backbone(), 2, image_shape=(20, 20, 3), pooling=None)


@pytest.mark.parametrize("shape", [(15, 20, 3), (20, 15, 3), (20, 20, 1), (20, 20)])
def test_images_that_do_not_fit_are_refused_with_what_would(shape):
    with pytest.raises(ValueError, match=r"'compact_vgg'.*at least 16 x 16\. Received: image_shape=\(\d+, \d+"):
        ImageClassifier.from_backbone("compact_vgg", num_classes=2, image_shape=shape)


def test_a_network_may_see_the_images_at_another_size(images):
    network = ImageClassifier.from_backbone("compact_resnet", num_classes=2, image_shape=(20, 20, 3), resize_to=32)
    assert network.backbone.input_shape == (None, 32, 32, 3)
    assert network(images).shape == (3, 2)
    with pytest.raises(ValueError, match=r"at least 16 pixels per side. Received: resize_to=8"):
        ImageClassifier.from_backbone("compact_resnet", num_classes=2, resize_to=8)


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"scale": 2.0, "offset": -1.0},
        {"scale": 255.0, "offset": (-91.4953, -103.8827, -131.0912), "reverse_channels": True},
        {"scale": (4.4, 4.5, 4.6), "offset": -2.0, "size": (23, 31)},
        {"size": (7, 9)},
    ],
)
def test_the_gradient_on_pixels_equals_a_finite_difference(preprocessing):
    size = preprocessing.get("size")
    backbone = small_backbone(square, size or (12, 12))
    network = ImageClassifier(backbone, 2, image_shape=(12, 12, 3), preprocessing=Preprocessing(**preprocessing))
    rng = np.random.default_rng(1)
    images = tf.constant(rng.uniform(0.25, 0.75, (2, 12, 12, 3)), tf.float32)
    directions = rng.choice([-0.25, 0.25], (8, 2, 12, 12, 3)).astype("float32")

    def loss(x):
        logits = network(x)
        return tf.reduce_sum(logits[:, 0] - logits[:, 1])

    with tf.GradientTape() as tape:
        tape.watch(images)
        scalar = loss(images)
    gradient = tape.gradient(scalar, images).numpy()
    expected = [float(loss(images + d) - loss(images - d)) / 2 for d in directions]
    received = [float((gradient * d).sum()) for d in directions]
    # The logits are of second degree in the pixels, so a central difference has no truncation error at any step;
    # what is left is float32 rounding, about 1e-6 of the two losses that are subtracted.
    tolerance = 1e-5 * max(abs(float(loss(images + d))) for d in directions)
    assert np.max(np.abs(expected)) > 100 * tolerance
    np.testing.assert_allclose(received, expected, atol=tolerance)


@pytest.mark.parametrize("name", ["compact_vgg", "compact_resnet", "compact_inception", "compact_densenet"])
def test_the_gradient_of_a_backbone_equals_a_finite_difference(name):
    network = ImageClassifier.from_backbone(name, num_classes=3, image_shape=(20, 20, 3), resize_to=24)
    rng = np.random.default_rng(2)
    images = tf.constant(rng.uniform(0.2, 0.8, (2, 20, 20, 3)), tf.float32)

    def loss(x):
        return tf.reduce_sum(network(x)[:, 0])

    with tf.GradientTape() as tape:
        tape.watch(images)
        scalar = loss(images)
    gradient = tape.gradient(scalar, images)
    # Along the gradient itself, where the difference is largest; 1e-2 covers the ReLUs that switch on the way.
    step = 1e-3 * gradient / tf.norm(gradient)
    difference = float(loss(images + step) - loss(images - step)) / 2
    assert difference == pytest.approx(float(tf.reduce_sum(gradient * step)), rel=1e-2)


def test_a_trained_keras_model_keeps_its_head_and_its_answers(tmp_path):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3, activation="softmax")(
        keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    )
    model = keras.Model(inputs, outputs, name="mine")
    model.save(tmp_path / "mine.keras")
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype("float32")
    for given in (model, tmp_path / "mine.keras"):
        network = ImageClassifier.from_keras(given, input_range=(0, 255))
        np.testing.assert_allclose(tf.nn.softmax(network(images)), model(255 * images), atol=1e-5)
    assert ImageClassifier.from_keras(network) is network
    with pytest.raises(ValueError, match="softmax and then softmax"):
        ImageClassifier.from_keras(keras.Model(inputs, keras.layers.Softmax()(outputs)))
