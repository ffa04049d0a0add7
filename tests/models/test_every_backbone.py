"""What holds for every registered backbone: full sizes are built, and what runs does so on the smallest images."""

import gc
from dataclasses import replace
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.models import ImageClassifier, available_backbones, get_backbone, registry

SMALL = ("compact_", "tramer_")
# A network of the same layers is saved, exported and run in half precision for these.
SAME_LAYERS = {
    "compact_resnet_deep": "compact_resnet",
    "tramer_b": "tramer_a",
    "tramer_c": "tramer_a",
    "vgg16_face_fc7": "vgg16_face",
    "resnet50_face": "senet50_face",
    "vgg16_imagenet": "vgg16_face",
    "resnet101_imagenet": "resnet50_imagenet",
    "inception_v3_imagenet": "inception_resnet_v2_imagenet",
    "efficientnet_v2_s_imagenet": "efficientnet_v2_b0_imagenet",
}


def parameters(names):
    return [pytest.param(name, marks=() if name.startswith(SMALL) else pytest.mark.slow) for name in names]


BACKBONES = parameters(available_backbones())
OTHER_LAYERS = parameters(name for name in available_backbones() if name not in SAME_LAYERS)


def working_size(name):
    """The smallest images that the backbone works on as they are."""
    return max(get_backbone(name).minimum_size, get_backbone(name).resize_below)


@pytest.fixture(scope="module")
def network(request):
    """A network for the smallest images, shared by a backbone's tests."""
    size = working_size(request.param)
    yield ImageClassifier.from_backbone(request.param, num_classes=3, image_shape=(size, size, 3), dropout=0.0)
    gc.collect()  # models are cyclic, and some of these are large


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def some_images(size, count=2):
    return np.random.default_rng(0).random((count, size, size, 3)).astype("float32")


def train_a_step(network, images):
    """One step of SGD, after which the first kernel, the last, and nothing infinite have changed."""
    first = next(weight for weight in network.backbone.trainable_variables if "kernel" in weight.path)
    watched = [first, network.get_layer("classification").kernel]
    before = [weight.numpy() for weight in watched]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(1e-3), loss, run_eagerly=True)  # tracing would take most of the time
    assert np.isfinite(network.train_on_batch(images, np.array([0, 2])))
    for weight, value in zip(watched, before, strict=True):
        assert np.any(weight.numpy() != value)
        assert np.all(np.isfinite(weight.numpy()))


def assert_exports(network, images, folder):
    """The SavedModel gives the logits of the network."""
    archive = keras.export.ExportArchive()
    archive.track(network)
    signature = [tf.TensorSpec([None, *images.shape[1:]], tf.float32, name="images")]
    archive.add_endpoint("serve", lambda images: network(images, training=False), input_signature=signature)
    # Each gradient of an operation with a custom one would be traced, a quarter of the time.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    archive.write_out(folder / "export", options=options, verbose=False)
    restored = tf.saved_model.load(folder / "export")
    logits = network(images, training=False).numpy()
    # The graph may fuse and reorder what runs op by op here: float32 rounding, relative to the largest logit.
    np.testing.assert_allclose(restored.serve(images), logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())


def assert_built_for_its_images(network):
    """What the preprocessing makes of the images is what the backbone was built for.

    Keras has propagated the shapes through every layer as it built the backbone, so nothing of it has to run.
    """
    prepared = network.preprocessing(np.zeros((1, *network.image_shape), "float32"))
    assert network.backbone.input_shape == (None, *prepared.shape[1:])
    assert network.get_layer("classification").kernel.shape == (network.feature_size, 3)


@pytest.mark.parametrize("network", BACKBONES, indirect=True)
def test_trains_a_step(network):
    assert network.preprocessing.size is None
    assert_built_for_its_images(network)
    train_a_step(network, some_images(network.image_shape[0]))


@pytest.mark.parametrize("network", OTHER_LAYERS, indirect=True)
def test_saves_and_exports(network, tmp_path):
    images = some_images(network.image_shape[0])
    logits = network(images, training=False).numpy()
    network.save(tmp_path / "network.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "network.keras")(images), logits)
    assert_exports(network, images, tmp_path)


@pytest.mark.parametrize("name", BACKBONES)
def test_builds_at_its_default_and_its_smallest_size(name):
    """From small images, those of a backbone that cannot work on them are resized to its default size."""
    spec = get_backbone(name)
    default = ImageClassifier.from_backbone(name, num_classes=3)
    assert default.image_shape == (spec.default_size, spec.default_size, 3)
    assert_built_for_its_images(default)
    if spec.minimum_size < spec.resize_below:
        with mock.patch.dict(registry._BACKBONES, {name: replace(spec, build=lambda shape: default.backbone)}):
            small = ImageClassifier.from_backbone(name, num_classes=3, image_shape=(spec.minimum_size,) * 2 + (3,))
        assert small.preprocessing.size == (spec.default_size,) * 2
        assert_built_for_its_images(small)
    gc.collect()


# The range of float16 is what a network may leave; bfloat16 has that of float32.
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *(pytest.param(*each.values, "mixed_float16", marks=each.marks) for each in OTHER_LAYERS),
        *((name, "mixed_bfloat16") for name in ("compact_resnet", "tramer_a")),
    ],
    indirect=["policy"],
)
def test_mixed_precision_ends_in_float32_logits(name, policy):
    size = working_size(name)
    network = ImageClassifier.from_backbone(name, num_classes=3, image_shape=(size, size, 3))
    assert network.backbone.output.dtype == policy.removeprefix("mixed_")
    assert {weight.dtype for weight in network.weights} == {"float32"}
    for answer in (network.features(some_images(size)), network(some_images(size))):
        assert answer.dtype == tf.float32
        assert np.all(np.isfinite(answer))
    gc.collect()
