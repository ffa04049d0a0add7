"""Loading weights: the whole backbone or a refusal, from files in the exact layout of the published ones."""

import hashlib
import shutil
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from satm_tf.models import ImageClassifier, get_backbone
from satm_tf.models import weights as weights_room
from satm_tf.models.weights import PublishedWeights, find_weights, load_weights, load_weights_by_name
from tests.models.fuzzing import fuzz_weights, small_model

NAMES = ["vgg16_face", "resnet50_face", "senet50_face"]


def random_weights(backbone, seed=0):
    rng = np.random.default_rng(seed)
    return {
        layer.name.replace(".", "/"): {w.name: rng.standard_normal(w.shape, dtype="float32") for w in layer.weights}
        for layer in backbone.layers
    }


def assert_loaded(backbone, values):
    for layer in backbone.layers:
        for weight in layer.weights:
            np.testing.assert_array_equal(weight, values[layer.name.replace(".", "/")][weight.name])


@pytest.fixture(scope="module")
def resnet():
    """A few of ResNet50's layers, with their names."""
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 7, 2, use_bias=False, name="conv1.7x7_s2")(images)
    x = keras.layers.BatchNormalization(name="conv1.7x7_s2.bn")(x)
    x = keras.layers.ReLU(name="activation")(keras.layers.BatchNormalization(name="conv3_2_3x3.bn")(x))
    x = keras.layers.Conv2D(8, 1, use_bias=False, name="conv4_1_1x1_increase")(x)
    return keras.Model(images, x, name="resnet50_face_backbone")


@pytest.fixture(scope="module")
def intact(resnet, tmp_path_factory, write_keras2):
    """A file of them and its values."""
    values = random_weights(resnet)
    path = tmp_path_factory.mktemp("weights") / "rcmalli_vggface_tf_notop_resnet50.h5"
    write_keras2(path, values)
    return path, values


@pytest.fixture
def published(resnet, intact, tmp_path):
    """A copy for the test to damage, and a network that holds other values."""
    path, values = intact
    for weight in resnet.weights:
        weight.assign(np.zeros(weight.shape))
    return Path(shutil.copy(path, tmp_path)), values


@pytest.mark.parametrize(("name", "layers"), [("vgg16_face", 13), ("resnet50_face", 106), ("senet50_face", 138)])
def test_every_weight_of_a_keras2_file_is_loaded(tmp_path, write_keras2, vggface_backbones, name, layers):
    backbone = vggface_backbones(name)
    values = random_weights(backbone)
    write_keras2(tmp_path / "weights.h5", values)
    get_backbone(name).load(backbone, tmp_path / "weights.h5")
    assert sum(bool(layer.weights) for layer in backbone.layers) == layers
    assert_loaded(backbone, values)


def test_the_weights_that_a_network_starts_from_are_on_record(tmp_path):
    path = tmp_path / "a.weights.h5"
    get_backbone("compact_vgg").build((16, 16, 3)).save_weights(path)
    network = ImageClassifier.from_backbone("compact_vgg", num_classes=8, image_shape=(16, 16, 3), weights=str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.initial_weights == {"weights": str(path), "file": "a.weights.h5", "sha256": digest}


def test_the_layers_of_a_head_are_left(resnet, published):
    path, values = published
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = np.array([*file.attrs["layer_names"], b"classifier"])
        group = file.create_group("classifier")
        group.attrs["weight_names"] = np.array([b"classifier/kernel:0"])
        group["classifier/kernel:0"] = np.zeros((8, 20), "float32")
    load_weights_by_name(resnet, path)
    assert_loaded(resnet, values)


def test_a_whole_model_file_is_read_too(resnet, published, tmp_path):
    path, values = published
    with h5py.File(path) as source, h5py.File(tmp_path / "model.h5", "w") as target:
        source.copy(source, target, "model_weights")
    load_weights_by_name(resnet, tmp_path / "model.h5")
    assert_loaded(resnet, values)


def test_a_file_of_other_names_is_matched_in_order(resnet, published):
    path, values = published
    with h5py.File(path, "a") as file:
        names = [name.decode() for name in file.attrs["layer_names"]]
        weighted = [name for name in names if len(file[name].attrs["weight_names"])]
        for index, name in enumerate(weighted):
            new = file.create_group(f"layer_{index}")
            new.attrs["weight_names"] = file[name].attrs["weight_names"]
            for weight in file[name].attrs["weight_names"]:
                new[weight] = file[name][weight][()]
        file.attrs["layer_names"] = np.array([f"layer_{index}" for index in range(len(weighted))], "S")
    load_weights_by_name(resnet, path)
    assert_loaded(resnet, values)


def unchanged_after(refused, backbone):
    before = backbone.get_weights()
    refused()
    return all(np.array_equal(*pair) for pair in zip(before, backbone.get_weights(), strict=True))


def test_a_missing_layer_is_refused_by_name_and_nothing_is_loaded(resnet, published):
    path, _ = published
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = np.array([n for n in file.attrs["layer_names"] if n != b"conv3_2_3x3/bn"])

    def refused():
        with pytest.raises(ValueError, match=r"3 of the 4 .*first missing is 'conv3_2_3x3.bn'"):
            load_weights_by_name(resnet, path)

    assert unchanged_after(refused, resnet)


def test_the_slash_may_be_spelt_as_a_dot(resnet, published):
    """Where Keras's own `by_name` leaves half of ResNet50 random, without a word."""
    path, values = published
    with h5py.File(path, "a") as file:
        names = [name.decode() for name in file.attrs["layer_names"]]
        for name in [name for name in names if name.endswith("/bn")] + ["conv1/7x7_s2"]:
            file.move(name, name.replace("/", "."))
        file.attrs["layer_names"] = np.array([name.replace("/", ".") for name in names], "S")
    load_weights_by_name(resnet, path)
    assert_loaded(resnet, values)


def test_a_transposed_kernel_is_refused_and_nothing_is_loaded(resnet, published):
    path, values = published
    kernel = "conv4_1_1x1_increase/kernel:0"
    with h5py.File(path, "a") as file:
        group = file["conv4_1_1x1_increase"]
        del group[kernel]
        group[kernel] = values["conv4_1_1x1_increase"]["kernel"].transpose(3, 2, 0, 1)

    def refused():
        with pytest.raises(ValueError, match=r"'conv4_1_1x1_increase'.*\(1, 1, 4, 8\).*\(8, 4, 1, 1\)"):
            load_weights_by_name(resnet, path)

    assert unchanged_after(refused, resnet)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(resnet, published, kept):
    path, _ = published
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"damaged, or its download is incomplete"):
        load_weights_by_name(resnet, path)


def test_the_file_of_another_network_is_refused(published, vggface_backbones):
    path, _ = published
    with pytest.raises(ValueError, match=r"0 of the 13 .*first missing is 'conv1_1'"):
        load_weights_by_name(vggface_backbones("vgg16_face"), path)


def test_what_is_not_hdf5_by_name_is_refused_unopened(resnet, tmp_path):
    path = tmp_path / "weights.pickle"
    path.write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"Weights must be in an HDF5 file"):
        load_weights_by_name(resnet, path)


@pytest.mark.parametrize("load", [load_weights, load_weights_by_name])
def test_files_that_keras3_writes_are_loaded_whole_or_refused(tmp_path, load):
    first, second = (get_backbone("compact_vgg").build((16, 16, 3)) for _ in range(2))
    first.save_weights(tmp_path / "own.weights.h5")
    load(second, tmp_path / "own.weights.h5")
    for ours, theirs in zip(second.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = get_backbone("compact_resnet").build((16, 16, 3))
    with pytest.raises(ValueError, match=r"does not hold the weights of 'compact_resnet_backbone'"):
        load(other, tmp_path / "own.weights.h5")


def test_without_a_network_the_error_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def offline(*_args, **_kwargs):
        raise Exception("URL fetch failure")  # what get_file raises

    monkeypatch.setattr(weights_room.keras.utils, "get_file", offline)
    with pytest.raises(OSError, match=r"Could not download") as caught:
        ImageClassifier.from_backbone("resnet50_face", num_classes=2, weights="vggface")
    file = "rcmalli_vggface_tf_notop_resnet50.h5"
    assert f"https://github.com/rcmalli/keras-vggface/releases/download/v2.0/{file}" in str(caught.value)
    assert str(tmp_path / "models" / "vggface" / file) in str(caught.value)


@pytest.mark.parametrize("name", [*NAMES, "vgg16_face_fc7"])
def test_a_file_put_there_by_hand_is_taken(tmp_path, monkeypatch, name):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    published = get_backbone(name).published
    url = Path(published["vggface"].url)
    file = tmp_path / "models" / "vggface" / url.name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"here already")
    assert find_weights(name, "vggface", published) == file


def test_a_file_of_another_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    source = tmp_path / "weights.h5"
    source.write_bytes(b"not what was published")
    published = {"imagenet": PublishedWeights(source.as_uri(), checksum="0" * 32)}
    with pytest.raises(OSError, match=r"hash does not match"):
        find_weights("some", "imagenet", published)


def test_neither_published_nor_a_file_is_refused():
    with pytest.raises(ValueError, match=r"'resnet50_face'.*published: 'vggface'.*Received: weights='vgface'"):
        ImageClassifier.from_backbone("resnet50_face", num_classes=2, weights="vgface")


@pytest.mark.parametrize("index", [0, 1])
def test_weights_that_are_no_numbers_are_refused_and_nothing_is_set(tmp_path, index):
    model, files, _ = small_model(tmp_path)
    with h5py.File(files[index], "a") as file:
        datasets = []
        file.visititems(lambda _, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
        datasets[-1][...] = np.nan
    with pytest.raises(ValueError, match=f"{files[index].name} must be finite numbers"):
        load_weights_by_name(model, files[index])
    assert all((weight.numpy() == 7).all() for weight in model.weights)


def test_a_damaged_weights_file_sets_all_or_nothing(tmp_path):
    assert fuzz_weights(seed=0, count=150, folder=tmp_path)["refused"] > 100


def test_a_link_to_another_file_is_refused(tmp_path):
    model, files, _ = small_model(tmp_path)
    with h5py.File(files[1], "a") as file:
        del file["a/a/kernel:0"]
        file["a/a/kernel:0"] = h5py.ExternalLink(str(files[0]), "/anything")
    with pytest.raises(ValueError, match="a link to somewhere else"):
        load_weights_by_name(model, files[1])
