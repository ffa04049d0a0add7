"""The backbones from keras.applications, against those functions themselves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

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
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in APPLICATIONS]


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_application_on_its_own_preprocessing(name):
    """But for rounding: pixels are scaled in another order of operations, 1e-7 each, networks stretch that a bit."""
    application, module = APPLICATIONS[name]
    network = ImageClassifier.from_backbone(name, num_classes=2, image_shape=(75, 80, 3))
    reference = application(include_top=False, weights=None, input_shape=(75, 80, 3), pooling="avg")
    reference.set_weights(perturbed(reference.get_weights()))
    network.backbone.set_weights(reference.get_weights())
    images = np.random.default_rng(0).random((2, 75, 80, 3)).astype("float32")
    expected = reference(module.preprocess_input(images * 255), training=False).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()  # the images count
    np.testing.assert_allclose(network.features(images), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def perturbed(weights):
    """Biases and batch statistics away from 0 and 1, so that a shift of the pixels shows."""
    rng = np.random.default_rng(1)
    return [w * rng.uniform(0.8, 1.2, w.shape) + (rng.uniform(0, 0.05, w.shape) if w.ndim == 1 else 0) for w in weights]


@pytest.mark.parametrize("name", [name for name in NAMES if name.values[0] in WITHIN])
def test_preprocessing_is_that_of_the_layers_inside_the_application(name):
    application, _ = APPLICATIONS[name]
    whole = application(include_top=False, weights=None, input_shape=(75, 75, 3))
    inside = [layer for layer in whole.layers if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)]
    assert inside
    images = tf.constant(np.random.default_rng(0).random((2, 75, 75, 3)), tf.float32)
    expected = images * 255
    for layer in inside:
        expected = layer(expected)
    ours = Preprocessing(**get_backbone(name).preprocessing)(images)
    np.testing.assert_allclose(ours, expected, atol=1e-5)  # values up to 2.6, two more roundings


@pytest.mark.parametrize("name", sorted(APPLICATIONS.keys() - WITHIN))
def test_preprocessing_is_that_of_preprocess_input(name):
    _, module = APPLICATIONS[name]
    images = np.random.default_rng(0).random((2, 75, 75, 3)).astype("float32")
    expected = module.preprocess_input(images * 255)
    ours = Preprocessing(**get_backbone(name).preprocessing)(images)
    np.testing.assert_allclose(ours, expected, atol=1e-4)  # float32 spacing at 255 is 1.5e-5


@pytest.mark.parametrize("name", ["inception_v3_imagenet", "efficientnet_v2_b0_imagenet", "convnext_tiny_imagenet"])
def test_a_published_layout_loads_whole_or_is_refused(name, tmp_path, write_keras2):
    """These have layers that Keras numbers as they are made, so names in a file say nothing and order counts."""
    rng = np.random.default_rng(0)
    values = {
        layer.name.replace("conv2d", "conv2d_7"): {
            f"weight_{index}": rng.standard_normal(w.shape, dtype="float32") for index, w in enumerate(layer.weights)
        }
        for layer in get_backbone(name).build((75, 75, 3)).layers
    }
    path = tmp_path / "notop.h5"
    write_keras2(path, values)
    network = ImageClassifier.from_backbone(name, num_classes=2, image_shape=(75, 75, 3), weights=str(path))
    for layer, arrays in zip(network.backbone.layers, values.values(), strict=True):
        for weight, array in zip(layer.weights, arrays.values(), strict=True):
            np.testing.assert_array_equal(weight, array)
    sixth = [layer for layer, arrays in values.items() if arrays][5]
    write_keras2(path, {layer: arrays for layer, arrays in values.items() if layer != sixth})
    with pytest.raises(ValueError, match=r"does not hold the weights of .*Layer count mismatch"):
        ImageClassifier.from_backbone(name, num_classes=2, image_shape=(75, 75, 3), weights=str(path))


@pytest.mark.parametrize("name", NAMES)
def test_published_files_are_those_of_keras(name, monkeypatch):
    """The application itself, asked for "imagenet", would fetch the same address and check the same checksum."""
    application, _ = APPLICATIONS[name]
    asked = {}

    class AskedError(Exception):
        pass

    def get_file(file, url, cache_subdir, file_hash):
        asked.update(url=url, folder=cache_subdir, checksum=file_hash)
        raise AskedError

    from keras.src.utils import file_utils

    monkeypatch.setattr(file_utils, "get_file", get_file)
    with pytest.raises(AskedError):
        application(include_top=False, weights="imagenet", input_shape=(224, 224, 3))
    published = get_backbone(name).published["imagenet"]
    assert asked == {"url": published.url, "folder": published.folder, "checksum": published.checksum}


def test_a_network_that_cannot_take_small_images_sees_them_larger():
    network = ImageClassifier.from_backbone("inception_v3_imagenet", num_classes=2, image_shape=(48, 48, 3))
    assert network.backbone.input_shape == (None, 299, 299, 3)
    network = ImageClassifier.from_backbone("inception_v3_imagenet", num_classes=2, image_shape=(75, 75, 3))
    assert network.backbone.input_shape == (None, 75, 75, 3)
