"""The backbones from keras.applications, against those functions themselves."""

import gc
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.utils import file_utils

from satm_tf.models import ImageClassifier, Preprocessing, get_backbone

APPLICATIONS = {
    "vgg16_imagenet": (keras.applications.VGG16, keras.applications.vgg16),
    "resnet50_imagenet": (keras.applications.ResNet50, keras.applications.resnet),
    "resnet101_imagenet": (keras.applications.ResNet101, keras.applications.resnet),
    "inception_v3_imagenet": (keras.applications.InceptionV3, keras.applications.inception_v3),
    "inception_resnet_v2_imagenet": (keras.applications.InceptionResNetV2, keras.applications.inception_resnet_v2),
    "efficientnet_v2_b0_imagenet": (keras.applications.EfficientNetV2B0, keras.applications.efficientnet_v2),
    "efficientnet_v2_s_imagenet": (keras.applications.EfficientNetV2S, keras.applications.efficientnet_v2),
    "convnext_tiny_imagenet": (keras.applications.ConvNeXtTiny, keras.applications.convnext),
}
LARGE = {"resnet101_imagenet", "inception_resnet_v2_imagenet", "efficientnet_v2_s_imagenet"}
WITHIN = {name for name in APPLICATIONS if name.startswith(("efficientnet", "convnext"))}  # preprocess in the graph
NUMBERED = ("inception_v3_imagenet", "efficientnet_v2_b0_imagenet", "convnext_tiny_imagenet")
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in APPLICATIONS]


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    """Our backbone's network, the application itself, asked for "imagenet", and what that would have fetched."""
    name, fetched = request.param, {}

    def get_file(file, url, cache_subdir, file_hash):
        fetched.update(url=url, folder=cache_subdir, checksum=file_hash)

    with mock.patch.object(file_utils, "get_file", get_file), mock.patch.object(keras.Model, "load_weights"):
        build, _ = APPLICATIONS[name]
        application = build(include_top=False, weights="imagenet", input_shape=(75, 80, 3), pooling="avg")
    yield name, ImageClassifier.from_backbone(name, num_classes=2, image_shape=(75, 80, 3)), application, fetched
    gc.collect()


def test_features_are_those_of_the_application_on_its_own_preprocessing(pair):
    """But for rounding: pixels are scaled in another order of operations, 1e-7 each, networks stretch that a bit."""
    name, network, reference, _ = pair
    reference.set_weights(perturbed(reference.get_weights()))
    network.backbone.set_weights(reference.get_weights())
    images = np.random.default_rng(0).random((2, 75, 80, 3)).astype("float32")
    expected = reference(APPLICATIONS[name][1].preprocess_input(images * 255), training=False).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()  # the images count
    np.testing.assert_allclose(network.features(images), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def perturbed(weights):
    """Biases and batch statistics away from 0 and 1, so that a shift of the pixels shows."""
    rng = np.random.default_rng(1)
    return [w * rng.uniform(0.8, 1.2, w.shape) + (rng.uniform(0, 0.05, w.shape) if w.ndim == 1 else 0) for w in weights]


def test_preprocessing_is_that_of_the_layers_inside_the_application(pair):
    name, network, application, _ = pair
    kinds = keras.layers.Rescaling | keras.layers.Normalization
    inside = [layer for layer in application.layers if isinstance(layer, kinds)]
    assert bool(inside) == (name in WITHIN)
    images = tf.constant(np.random.default_rng(0).random((2, 75, 75, 3)), tf.float32)
    expected = images * 255
    for layer in inside:
        expected = layer(expected)
    if inside:
        np.testing.assert_allclose(network.preprocessing(images), expected, atol=1e-5)  # up to 2.6, two more roundings


@pytest.mark.parametrize("name", sorted(APPLICATIONS.keys() - WITHIN))
def test_preprocessing_is_that_of_preprocess_input(name):
    _, module = APPLICATIONS[name]
    images = np.random.default_rng(0).random((2, 75, 75, 3)).astype("float32")
    expected = module.preprocess_input(images * 255)
    ours = Preprocessing(**get_backbone(name).preprocessing)(images)
    np.testing.assert_allclose(ours, expected, atol=1e-4)  # float32 spacing at 255 is 1.5e-5


def test_a_published_layout_loads_whole_or_is_refused(pair, tmp_path, write_keras2):
    """Where Keras numbers layers as they are made, names in a file say nothing and order counts."""
    name, network, _, _ = pair
    if name not in NUMBERED:
        pytest.skip("Keras numbers none of its layers, or those of a smaller one in the same way")
    rng = np.random.default_rng(0)
    values = {
        layer.name.replace("conv2d", "conv2d_7"): {
            f"weight_{index}": rng.standard_normal(w.shape, dtype="float32") for index, w in enumerate(layer.weights)
        }
        for layer in network.backbone.layers
    }
    path, load = tmp_path / "notop.h5", get_backbone(name).load
    write_keras2(path, values)
    load(network.backbone, path)
    for layer, arrays in zip(network.backbone.layers, values.values(), strict=True):
        for weight, array in zip(layer.weights, arrays.values(), strict=True):
            np.testing.assert_array_equal(weight, array)
    sixth = [layer for layer, arrays in values.items() if arrays][5]
    write_keras2(path, {layer: arrays for layer, arrays in values.items() if layer != sixth})
    with pytest.raises(ValueError, match=r"does not hold the weights of .*Layer count mismatch"):
        load(network.backbone, path)


def test_published_files_are_those_of_keras(pair):
    """The same address and the same checksum."""
    name, _, _, fetched = pair
    published = get_backbone(name).published["imagenet"]
    assert fetched == {"url": published.url, "folder": published.folder, "checksum": published.checksum}
