import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import detection
from satm_tf.models.runtimes import RuntimeModel
from satm_tf.serving import VerificationError, formats

from .conftest import build_network

pytest.importorskip("ai_edge_litert", reason="needs the lite extra")
pytest.importorskip("tf2onnx", reason="needs the onnx extra")
pytest.importorskip("onnxruntime", reason="needs the onnx extra")


@pytest.fixture(scope="module")
def images(pixels):
    return pixels / np.float32(255)


@pytest.fixture(scope="module")
def files(exported, images, tmp_path_factory):
    """One file of each format."""
    stem = tmp_path_factory.mktemp("formats") / "faces"
    return {
        name: formats.convert(
            exported.network, stem, name, samples=images[:2], calibration=images if kind.calibrated else None
        )
        for name, kind in formats.FORMATS.items()
    }


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("count", [1, 6])
def test_the_file_answers_as_the_model(exported, files, images, name, count):
    answer = RuntimeModel(files[name]).run(images[:count])
    expected = exported.probabilities(images[:count])
    assert (answer.dtype, answer.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=formats.FORMATS[name].tolerance)
    # Half precision and eight bits are not float32 under another name.
    exact = np.abs(answer - expected).max() < 1e-5
    assert exact == (name in ("litert_float32", "onnx"))


def test_sizes_follow_the_precision(files):
    sizes = {name: path.stat().st_size for name, path in files.items()}
    assert sizes["litert_int8"] < sizes["litert_float32"]
    assert sizes["litert_float16"] < sizes["litert_float32"]


def test_eight_bits_calibrated_on_other_images_are_refused(exported, images, tmp_path):
    """Ranges found on black images cut off what others need: the probabilities are far off, and no file is written."""
    with pytest.raises(VerificationError, match=r"litert_int8, a probability may differ by at most 0\.25"):
        formats.convert(
            exported.network, tmp_path / "x", "litert_int8", samples=images, calibration=np.zeros_like(images[:1])
        )
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_gives_no_numbers_is_refused(images, tmp_path):
    network = build_network()
    network._classification.bias.assign([np.nan] * 4)
    with pytest.raises(VerificationError, match="Received: nan"):
        formats.convert(network, tmp_path / "x", "onnx", samples=images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "litert_float32"])
def test_a_guarded_model_keeps_its_rejection(exported, detector, images, tmp_path, name):
    guarded = detection.Guarded(exported.network, detector)
    shown = np.concatenate([images / 3, images / 2 + 0.5])
    answer = RuntimeModel(formats.convert(guarded, tmp_path / "x", name, samples=shown)).run(shown)
    assert answer.shape == (12, 5)
    assert set((answer.argmax(-1) == 4).tolist()) == {True, False}
    suspicious = detector.score(exported.network, shown).numpy() > float(detector.threshold)
    np.testing.assert_array_equal(answer.argmax(-1) == 4, suspicious)


def test_mistakes(exported, images, tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'litert_int8'"):
        formats.convert(exported.network, tmp_path / "x", "lite_int8", samples=images)
    with pytest.raises(ValueError, match="needs calibration images"):
        formats.convert(exported.network, tmp_path / "x", "litert_int8", samples=images)
    with pytest.raises(ValueError, match="takes no calibration images"):
        formats.convert(exported.network, tmp_path / "x", "onnx", samples=images, calibration=images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("policy", "name"), [("mixed_bfloat16", "onnx"), ("mixed_float16", "litert_float32")])
def test_half_precision_is_converted_in_single(policy, name, images, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        network = build_network()
    finally:
        keras.config.set_dtype_policy(before)
    expected = tf.nn.softmax(network(images[:2], training=False)).numpy()
    answer = RuntimeModel(formats.convert(network, tmp_path / "half", name, samples=images[:2])).run(images[:2])
    # The network's own rounding: a few last digits of its eight or eleven bits.
    np.testing.assert_allclose(answer, expected, rtol=0, atol=0.03)
