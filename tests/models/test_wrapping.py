"""ImageClassifier.from_keras: trained models of every kind, each wrapped, trained for a step, exported and served."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import ImageClassifier
from satm_tf.models import load_model
from satm_tf.serving import export_saved_model
from satm_tf.training import CoTraining

SHAPE = (8, 8, 3)
layers = keras.layers


@keras.saving.register_keras_serializable(package="tests_wrapping")
class Subclassed(keras.Model):
    """Two convolutions in parallel, by keras.ops."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one, self.two = layers.Conv2D(2, 3), layers.Conv2D(2, 3)
        self.flatten, self.head = layers.Flatten(), layers.Dense(3, activation="softmax")

    def call(self, images, training=None):
        return self.head(self.flatten(keras.ops.relu(self.one(images)) + self.two(images)))


def _sequential(*more, name="mine"):
    return keras.Sequential(
        [keras.Input(SHAPE), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), *more], name=name
    )


def _nested():
    inner = _sequential(layers.Dense(3), name="inner")
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, layers.Softmax()(inner(layers.Rescaling(1 / 127.5, -1)(inputs))), name="nested")


def _subclassed():
    model = Subclassed()
    model(np.zeros((1, *SHAPE), "float32"))
    return model


def _any_size():
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))))


def _keras_hub():
    """KerasHub's own, with random weights, which need no download; its images are of any size."""
    hub = pytest.importorskip("keras_hub", reason="KerasHub has no tensorflow-text for this Python")
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
    )
    return hub.models.ImageClassifier(backbone, num_classes=3, activation="softmax", dropout=0.2)


MODELS = {
    "softmax": (lambda: _sequential(layers.Dense(3, activation="softmax")), (0, 255)),
    "logits": (lambda: _sequential(layers.Dense(3, use_bias=False)), (-1, 1)),
    "sigmoid": (lambda: _sequential(layers.Dense(1, activation="sigmoid")), (0, 1)),
    "rescaling": (
        lambda: keras.Sequential(
            [keras.Input(SHAPE), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(3), layers.Softmax()]
        ),
        (0, 255),
    ),
    "nested": (_nested, (0, 255)),
    "subclassed": (_subclassed, (0, 1)),
    "hub": (_keras_hub, (0, 255)),
}

EXPORTED = ("sigmoid", "subclassed", "hub")
"""The others' graphs consist of the same layers; an export takes most of the time."""


def _as_before(network, images):
    """The probabilities of a classifier; of two classes, that of the second."""
    probabilities = tf.nn.softmax(network(images))
    return probabilities[:, 1:] if network.num_classes == 2 else probabilities


@pytest.mark.parametrize("kind", MODELS)
def test_a_trained_model_is_wrapped_hardened_saved_exported_and_served(kind, tmp_path):
    keras.utils.set_random_seed(0)
    build, (low, high) = MODELS[kind]
    model = build()
    images = np.random.default_rng(0).uniform(size=(4, *SHAPE)).astype("float32")
    sample = low + (high - low) * images
    expected = np.asarray(model(sample))
    network = ImageClassifier.from_keras(model, (low, high), sample=sample, name="mine")
    if kind == "logits":
        np.testing.assert_allclose(network(images), expected, atol=1e-5)
    else:
        np.testing.assert_allclose(_as_before(network, images), expected, atol=1e-5)
    partner = ImageClassifier(_sequential(name="partner"), network.num_classes, image_shape=SHAPE, pooling=None)
    trained = CoTraining({"mine": network, "partner": partner}, "satm", epsilon=8 / 255)
    trained.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    trained.fit(tf.data.Dataset.from_tensors((images, np.array([0, 1, 0, 1]))), verbose=0)
    assert not np.allclose(_as_before(network, images), expected, atol=1e-6), "it learns"
    np.testing.assert_array_equal(model(sample), expected, err_msg="the model that was given stays as it was")
    network.save(tmp_path / "mine.keras")
    loaded = keras.saving.load_model(tmp_path / "mine.keras", compile=False)
    np.testing.assert_allclose(loaded(images), network(images), atol=1e-6)
    np.testing.assert_allclose(tf.function(loaded)(images), network(images), atol=1e-5)
    if kind not in EXPORTED:
        return
    labels = [str(number) for number in range(network.num_classes)]
    served = load_model(export_saved_model(network, tmp_path / "served", labels=labels))
    np.testing.assert_allclose(tf.nn.softmax(served(images)), tf.nn.softmax(network(images)), atol=1e-5)


def test_features_names_the_layer_before_a_head_of_several_layers(tmp_path):
    inputs = keras.Input(SHAPE)
    middle = layers.GlobalAveragePooling2D(name="middle")(layers.Conv2D(4, 3)(inputs))
    outputs = layers.Activation("softmax")(layers.BatchNormalization()(layers.Dense(3)(middle)))
    model = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match="features="):
        ImageClassifier.from_keras(model)
    network = ImageClassifier.from_keras(model, features="middle")
    assert network.feature_size == 4
    network.save(tmp_path / "mine.keras")
    images = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype("float32")
    loaded = keras.saving.load_model(tmp_path / "mine.keras", compile=False)
    np.testing.assert_allclose(tf.nn.softmax(loaded(images)), model(255 * images), atol=1e-5)
    with pytest.raises(ValueError, match="middle"):
        ImageClassifier.from_keras(model, features="midle")


def test_two_class_names_make_one_output_a_logit():
    model = _sequential(layers.Dense(1))
    network = ImageClassifier.from_keras(model, (0, 1), class_names=["cat", "dog"])
    images = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype("float32")
    np.testing.assert_allclose(network(images)[:, 1:] - network(images)[:, :1], model(images), atol=1e-5)
    with pytest.raises(ValueError, match="one output with"):
        ImageClassifier.from_keras(model)


class _Branching(Subclassed):
    def call(self, images, training=None):
        return super().call(images) if float(tf.reduce_sum(images)) > 0 else super().call(-images)


class _Loose(Subclassed):
    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, images, training=None):
        return super().call(images * self.scale)


def _called(model):
    model(np.ones((1, *SHAPE), "float32"))
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: _sequential(layers.Dense(2, activation="sigmoid")), {}, "ends in a Dense layer"),
        (lambda: _sequential(layers.Dense(1)), {}, "one output with"),
        (_any_size, {}, "pass images as sample"),
        (Subclassed, {}, "pass images as sample"),
        (lambda: _called(_Branching()), {"sample": np.ones((1, *SHAPE))}, "cannot be traced"),
        (lambda: _called(_Loose()), {"sample": np.ones((1, *SHAPE))}, "All weights"),
        (lambda: _sequential(layers.Dense(3)), {"class_names": ["a", "b"]}, "3 classes"),
        (lambda: _sequential(layers.Dense(3)), {"sample": np.full((1, *SHAPE), 256.0)}, "lie in input_range"),
        (lambda: _sequential(layers.Dense(3)), {"input_range": (1, 0)}, "lowest and the highest"),
        (lambda: "nowhere.keras", {}, "No model was found at this path"),
        (lambda: len, {}, "The model must be a Keras model"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_with_what_to_give(model, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ImageClassifier.from_keras(model(), **options)
