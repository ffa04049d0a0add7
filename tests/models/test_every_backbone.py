"""What holds for every registered backbone, at its default and at its smallest size."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.models import ImageClassifier, available_backbones, get_backbone

SMALL = ("compact_", "tramer_")
BACKBONES = [
    pytest.param(name, marks=() if name.startswith(SMALL) else pytest.mark.slow) for name in available_backbones()
]


@pytest.fixture(autouse=True)
def release_memory():
    yield
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
    archive.write_out(folder / "export", verbose=False)
    restored = tf.saved_model.load(folder / "export")
    logits = network(images, training=False).numpy()
    # The graph may fuse and reorder what runs op by op here: float32 rounding, relative to the largest logit.
    np.testing.assert_allclose(restored.serve(images), logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())


@pytest.mark.parametrize("name", BACKBONES)
def test_builds_and_trains_a_step_at_its_default_size(name):
    network = ImageClassifier.from_backbone(name, num_classes=3, dropout=0.0)
    images = some_images(get_backbone(name).default_size)
    assert network.features(images).shape == (2, network.feature_size)
    train_a_step(network, images)


@pytest.mark.parametrize("name", BACKBONES)
def test_builds_trains_a_step_saves_and_exports_at_its_smallest_size(name, tmp_path):
    size = get_backbone(name).minimum_size
    network = ImageClassifier.from_backbone(name, num_classes=3, image_shape=(size, size, 3), dropout=0.0)
    images = some_images(size)
    train_a_step(network, images)
    logits = network(images, training=False).numpy()

    network.save(tmp_path / "network.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "network.keras")(images), logits)
    assert_exports(network, images, tmp_path)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
@pytest.mark.parametrize("name", BACKBONES)
def test_mixed_precision_ends_in_float32_logits(name, policy):
    size = get_backbone(name).minimum_size
    network = ImageClassifier.from_backbone(name, num_classes=3, image_shape=(size, size, 3))
    images = some_images(size)
    assert network.backbone(network.preprocessing(images)).dtype == policy.removeprefix("mixed_")
    assert network.features(images).dtype == network(images).dtype == tf.float32
    assert {weight.dtype for weight in network.weights} == {"float32"}
    assert np.all(np.isfinite(network(images)))
