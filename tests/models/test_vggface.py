"""The VGGFace backbones against the real keras-vggface 0.6."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.models import ImageClassifier, Preprocessing, get_backbone

NAMES = ["vgg16_face", "resnet50_face", "senet50_face"]
HEADS = {"vgg16_face": ("vgg16_face_fc7", 2622), "resnet50_face": ("resnet50_face", 8631),
         "senet50_face": ("senet50_face", 8631)}  # fmt: skip


def set_sane_weights(model, seed=0):
    """Random weights under which activations keep their scale through the depth: else outputs would agree at 0 or inf.

    He's variance for what a ReLU follows; batch statistics away from their initial 0 and 1, so that their order counts.
    """
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            ranges = (0.4, 0.6), (-0.2, 0.2), (-0.2, 0.2), (0.5, 2.0)  # gamma, beta, moving mean, moving variance
            layer.set_weights([rng.uniform(low, high, layer.gamma.shape) for low, high in ranges])
        elif layer.weights:
            kernel, *bias = layer.get_weights()
            deviation = np.sqrt(2 / np.prod(kernel.shape[:-1]))
            kernel = rng.standard_normal(kernel.shape, dtype="float32") * deviation
            layer.set_weights([kernel, *(rng.uniform(-0.1, 0.1, b.shape) for b in bias)])


def description(layer):
    kind = type(layer).__name__
    facts = ("kernel_size", "strides", "padding", "epsilon", "momentum", "use_bias", "pool_size", "filters", "units")
    return kind, {fact: getattr(layer, fact) for fact in facts if hasattr(layer, fact)}


@pytest.fixture(scope="module", params=NAMES)
def pair(request, keras_vggface, vggface_backbones):
    """Our backbone and keras-vggface's, with the same weights."""
    reference = keras_vggface.build(request.param)
    ours = vggface_backbones(request.param)
    set_sane_weights(reference)
    ours.set_weights(reference.get_weights())
    return request.param, ours, reference


def test_layers_are_those_of_keras_vggface_in_its_order(pair):
    _, ours, reference = pair
    weighted = [layer for layer in reference.layers if layer.weights]
    assert [layer.name for layer in ours.layers if layer.weights] == [layer.name for layer in weighted]
    assert [description(layer) for layer in ours.layers] == [description(layer) for layer in reference.layers]


def test_parameter_counts_without_top(pair):
    name, ours, reference = pair
    published = {"vgg16_face": 14_714_688, "resnet50_face": 23_561_152, "senet50_face": 26_092_144}[name]
    assert ours.count_params() == reference.count_params() == published


def test_outputs_without_top_are_those_of_keras_vggface(pair):
    _, ours, reference = pair
    images = np.random.default_rng(1).uniform(-128, 128, (1, 224, 224, 3)).astype("float32")
    expected = reference(images, training=False).numpy()
    assert 1 < expected.std() < 1e4  # neither faded away nor blown up, so that the comparison says something
    # The same operations on the same float32 numbers; how they are scheduled may reorder sums, at 1e-7 a layer.
    np.testing.assert_allclose(ours(images, training=False), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "version"), [("vgg16_face", 1), ("resnet50_face", 2), ("senet50_face", 2)])
def test_preprocessing_is_that_of_keras_vggface(keras_vggface, name, version):
    images = np.random.default_rng(2).random((2, 197, 197, 3)).astype("float32")
    layer = Preprocessing(**get_backbone(name).preprocessing)
    expected = keras_vggface.preprocess_input(images * 255, "channels_last", version)
    np.testing.assert_allclose(layer(images), expected, atol=1e-4)  # float32 spacing at 255 is 1.5e-5


def test_the_reference_tells_right_means_from_wrong(keras_vggface):
    images = np.zeros((1, 8, 8, 3), "float32")
    first, second = (keras_vggface.preprocess_input(images, "channels_last", version) for version in (1, 2))
    assert np.abs(first - second).max() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_published_network_with_its_top_is_a_classifier_of_its_identities(keras_vggface, name):
    backbone, identities = HEADS[name]
    reference = keras_vggface.build(name, include_top=True)
    set_sane_weights(reference)
    network = ImageClassifier.from_backbone(backbone, num_classes=identities, name="identities")
    published = {"vgg16_face": 145_002_878, "resnet50_face": 41_246_071, "senet50_face": 43_777_063}[name]
    assert network.count_params() == reference.count_params() == published
    network.set_weights(reference.get_weights())
    images = np.random.default_rng(3).random((1, 224, 224, 3)).astype("float32")
    preprocessed = keras_vggface.preprocess_input(images * 255, "channels_last", 1 if name == "vgg16_face" else 2)
    expected = reference(preprocessed, training=False).numpy()
    probabilities = tf.nn.softmax(network(images)).numpy()
    assert expected.max() > 2 / identities  # not the uniform answer
    np.testing.assert_allclose(np.log(probabilities), np.log(expected), atol=2e-3)
