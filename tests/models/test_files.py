"""Every kind of model that `load_model` takes, and what it says of those that it does not.

`test_runtimes.py` has LiteRT and ONNX.
"""

from __future__ import annotations

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks
from satm_tf.models import FromProbabilities, ImageClassifier, LoadedModel, load_classifier, load_model

SHAPE = (16, 16, 3)
CLASSES = 4


def _network(shape=SHAPE, layer=None):
    layers = [keras.layers.Conv2D(4, 3, 2, activation="tanh"), keras.layers.GlobalAveragePooling2D()]
    head = [keras.layers.Dense(CLASSES, kernel_initializer="he_normal")] + ([layer] if layer else [])
    return keras.Sequential([keras.Input(shape), *layers, *head])


def _save(network, folder, outputs):
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint(
        "serving_default",
        lambda images: {name: function(network(images)) for name, function in outputs.items()},
        input_signature=[tf.TensorSpec([None, *SHAPE], tf.float32, name="images")],
    )
    archive.write_out(str(folder), verbose=False)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return _network()


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """The network in every kind of file; those of two outputs give logits as well as probabilities."""
    folder = tmp_path_factory.mktemp("files")
    network.save(folder / "plain.keras")
    keras.Sequential([keras.Input(SHAPE), network, keras.layers.Softmax()]).save(folder / "softmax.keras")
    keras.Model(network.inputs[0], {"logits": network.outputs[0], "double": 2 * network.outputs[0]}).save(
        folder / "named.keras"
    )
    _save(network, folder / "served" / "2", {"probabilities": tf.nn.softmax, "class_id": lambda x: tf.argmax(x, -1)})
    _save(network, folder / "served" / "10", {"logits": tf.identity, "probabilities": tf.nn.softmax})
    _save(network, folder / "other", {"first": tf.identity, "second": tf.nn.softmax})
    return folder


@pytest.fixture(scope="module")
def photographs():
    return np.random.default_rng(1).uniform(0.1, 0.9, (6, *SHAPE)).astype("float32")


@pytest.mark.parametrize(
    "source",
    [
        *("plain.keras", "softmax.keras", "named.keras", "served", "served#probabilities", "served/10", "served/2"),
        *("other#first", "other#second"),
    ],
)
def test_every_file_gives_the_same_logits(network, files, photographs, source):
    loaded = load_model(f"{files}/{source}")
    assert (loaded.image_shape, loaded.num_classes, loaded.differentiable) == (SHAPE, CLASSES, True)
    logits = loaded(photographs)
    assert logits.dtype == tf.float32
    # Logits from probabilities differ by a constant of each image.
    expected = tf.nn.softmax(network(photographs))
    np.testing.assert_allclose(tf.nn.softmax(logits), expected, atol=1e-6)


def test_a_chosen_output_is_the_one_used(network, files, photographs):
    expected = network(photographs)
    for loaded in (load_model(files / "named.keras", output="double"), load_model(f"{files}/named.keras#double")):
        np.testing.assert_allclose(loaded(photographs), 2 * expected, rtol=1e-5)


def test_models_in_memory(network, photographs, make_network):
    expected = network(photographs)
    for source, options in [
        (network, {}),
        (lambda images: network(images), {"image_shape": SHAPE}),
        (lambda images, training: network(images, training=training), {"image_size": 16}),
        (lambda images: tf.nn.softmax(network(images)), {"image_size": 16}),
        (keras.Sequential([keras.Input(SHAPE), network, keras.layers.Softmax()]), {}),
        (FromProbabilities(lambda images, training: tf.nn.softmax(network(images))), {"image_size": 16}),
    ]:
        loaded = load_model(source, **options)
        assert (loaded.image_shape, loaded.num_classes, loaded.fingerprint) == (SHAPE, CLASSES, None)
        assert loaded.differentiable
        np.testing.assert_allclose(tf.nn.log_softmax(loaded(photographs)), tf.nn.log_softmax(expected), atol=1e-5)
        assert load_model(loaded) is loaded
    ours = make_network(batch_norm=True, dropout=0.5)
    np.testing.assert_array_equal(load_model(ours)(photographs), ours(photographs, training=False))


def test_what_gives_logits_says_so():
    assert all(kind.gives_logits for kind in (ImageClassifier, LoadedModel, FromProbabilities))


def test_any_size_and_grey_images(files, tmp_path):
    with pytest.raises(ValueError, match=r"any size; give image_size \(--image_size\)"):
        load_model(_network((None, None, 3)))
    assert load_model(_network((None, None, 3)), image_size=24).image_shape == (24, 24, 3)
    assert load_model(_network((24, 20, 1))).image_shape == (24, 20, 1)
    with pytest.raises(ValueError, match=r"needs images of shape \(16, 16, 3\)"):
        load_model(files / "plain.keras", image_size=24)


def test_a_fingerprint_is_of_the_content_and_the_output(files, tmp_path):
    prints = [
        load_model(f"{files}/{source}").fingerprint
        for source in ("served", "served#probabilities", "served/2", "softmax.keras", "plain.keras")
    ]
    assert len(set(prints)) == 5
    shutil.copy(files / "plain.keras", tmp_path / "copy.keras")
    assert load_model(tmp_path / "copy.keras").fingerprint == prints[-1]


@pytest.mark.parametrize("source", ["served/10", "served/2"])
def test_a_saved_model_is_attacked_like_the_model_it_was(network, files, photographs, source):
    attack, labels = attacks.FGSM(epsilon=0.1), np.arange(6) % CLASSES
    adversarial = attack(load_model(files / source), photographs, labels)
    # Through the logarithm of a softmax the gradient is the same but for rounding, which turns few signs.
    assert np.mean(np.isclose(adversarial, attack(network, photographs, labels), atol=1e-6)) > 0.99


def test_without_a_gradient(photographs):
    def rounded(images):
        return tf.reduce_sum(tf.cast(tf.cast(images * 255, tf.int32), tf.float32), [1, 2]) @ tf.ones([3, CLASSES])

    assert not load_model(rounded, image_size=16).differentiable


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("other", r"has several outputs; choose one of first, second as .*other#OUTPUT"),
        ("served#probability", r"Unknown output of .*served/10\. Did you mean 'probabilities'"),
        ("plain.keras#logits", "has a single output, without a name"),
        ("named.keras#logit", r"Unknown output of .*named\.keras\. Did you mean 'logits'"),
        ("served/2#class_id", r"must give \[batch, classes\].*Received: \[8\]"),
        (".", r"A network must be a \.keras file, an \.onnx or a \.tflite file"),
    ],
)
def test_outputs_and_folders_that_do_not_fit(files, source, message):
    with pytest.raises(ValueError, match=message):
        load_model(f"{files}/{source}")


def test_a_path_may_hold_the_mark(files, tmp_path):
    shutil.copytree(files / "served" / "10", tmp_path / "a#b")
    assert load_model(tmp_path / "a#b").num_classes == CLASSES
    assert load_model(f"{tmp_path}/a#b#probabilities").num_classes == CLASSES


def test_missing_and_damaged_files(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No network was found at this path.*nowhere\.keras"):
        load_model(tmp_path / "nowhere.keras")
    whole = (files / "plain.keras").read_bytes()
    (tmp_path / "half.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.keras cannot be loaded. If it is damaged"):
        load_model(tmp_path / "half.keras")
    shutil.copytree(files / "served" / "10", tmp_path / "saved")
    (tmp_path / "saved" / "variables" / "variables.data-00000-of-00001").unlink()
    with pytest.raises(ValueError, match=r"saved cannot be loaded. If it is damaged"):
        load_model(tmp_path / "saved")
    with pytest.raises(ValueError, match="Unknown signature"):
        load_model(files / "served", signature="serving")
    with pytest.raises(ValueError, match="a path, a Keras model or a function"):
        load_model(3)
    with pytest.raises(ValueError, match="gave no outputs for images of shape"):
        load_model(lambda images: images @ tf.ones([5, 2]), image_size=8)


def test_a_classifier_is_loaded_as_itself_or_refused(make_network, network, tmp_path):
    ours = make_network()
    ours.save(tmp_path / "ours.keras")
    network.save(tmp_path / "other.keras")
    for ours_weight, weight in zip(ours.weights, load_classifier(tmp_path / "ours.keras").weights, strict=True):
        np.testing.assert_array_equal(weight, ours_weight)
    with pytest.raises(ValueError, match=r"must hold an ImageClassifier.*Received: Sequential in .*other\.keras"):
        load_classifier(tmp_path / "other.keras")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.keras"):
        load_classifier(tmp_path / "nowhere.keras")


def test_a_damaged_keras_file_is_named(tmp_path, make_network):
    """60 files with one bit turned or an end cut off: refused, but for a bit in what names and dates the parts."""
    path, damaged = tmp_path / "network.keras", tmp_path / "damaged.keras"
    network = make_network()
    network.save(path)
    images = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype("float32")
    draw, refused = np.random.default_rng(1), 0
    contents = path.read_bytes()
    for index in range(60):
        at = int(draw.integers(len(contents)))
        turned = contents[:at] + bytes([contents[at] ^ 1 << draw.integers(8)]) + contents[at + 1 :]
        damaged.write_bytes(contents[:at] if index % 4 == 0 else turned)
        try:
            loaded = load_classifier(damaged)
        except ValueError as error:
            refused += "damaged.keras cannot be loaded. If it is damaged" in str(error)
        else:
            np.testing.assert_allclose(loaded(images), network(images), atol=1e-6)
    assert refused > 40
