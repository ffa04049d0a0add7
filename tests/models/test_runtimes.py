"""LiteRT and ONNX files as models; `test_files.py` has SavedModels."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.models import load_model
from satm_tf.models.runtimes import RuntimeModel, choose_output

SHAPE = (16, 16, 3)
CLASSES = 4


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(4, 3, 2, activation="tanh"), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input(SHAPE), *layers, keras.layers.Dense(CLASSES)])


@pytest.fixture(scope="module", params=["litert", "onnx"])
def file(request, network, tmp_path_factory):
    """The network's probabilities, and twice its logits, as a file of either kind."""
    folder = tmp_path_factory.mktemp("runtime")
    signature = [tf.TensorSpec([None, *SHAPE], tf.float32, name="images")]

    def answer(images):
        return {"probabilities": tf.nn.softmax(network(images)), "double": 2 * network(images)}

    if request.param == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the onnx extra")
        tf2onnx = pytest.importorskip("tf2onnx", reason="needs the onnx extra")
        path = folder / "model.onnx"
        function = tf.function(answer, input_signature=signature, autograph=False)
        path.write_bytes(tf2onnx.convert.from_function(function, input_signature=signature)[0].SerializeToString())
        return path
    pytest.importorskip("ai_edge_litert", reason="needs the lite extra")
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint("serving_default", answer, input_signature=signature)
    archive.write_out(str(folder / "saved"), verbose=False)
    path = folder / "model.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved")).convert())
    return path


@pytest.fixture(scope="module")
def photographs():
    return np.random.default_rng(1).uniform(0.1, 0.9, (6, *SHAPE)).astype("float32")


@pytest.mark.parametrize("count", [6, 1])
def test_a_file_answers_in_graphs_too_and_has_no_gradient(network, file, photographs, count):
    loaded = load_model(file)
    assert (loaded.image_shape, loaded.num_classes, loaded.differentiable) == (SHAPE, CLASSES, False)
    assert len(loaded.fingerprint) == 64
    logits = tf.function(loaded)(tf.constant(photographs[:count]))
    assert logits.shape == [count, CLASSES]
    expected = network(photographs[:count])
    np.testing.assert_allclose(tf.nn.log_softmax(logits), tf.nn.log_softmax(expected), atol=1e-5)
    np.testing.assert_allclose(RuntimeModel(file, "double").run(photographs[:count]), 2 * expected, atol=1e-5)


def test_what_cannot_be_loaded(file, tmp_path):
    with pytest.raises(ValueError, match=rf"Unknown output of .*{file.name}. Did you mean 'double'"):
        load_model(f"{file}#duoble")
    if file.suffix == ".tflite":
        with pytest.raises(ValueError, match=rf"Unknown signature of .*{file.name}"):
            load_model(file, signature="serving")
    damaged = tmp_path / file.name
    damaged.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"{file.name} cannot be loaded. If it is damaged"):
        load_model(damaged)
    with pytest.raises(ValueError, match="Unknown suffix"):
        RuntimeModel(tmp_path / "model.pb")


def test_the_output_is_the_one_asked_for_or_one_of_known_name():
    assert choose_output(["a"], None, "m") == "a"
    assert choose_output(["probabilities", "label", "logits"], None, "m") == "logits"
    assert choose_output(["probabilities", "label"], None, "m") == "probabilities"
    assert choose_output(["a", "b"], "b", "m") == "b"
    with pytest.raises(ValueError, match="m has several outputs; choose one of a, b as m#OUTPUT"):
        choose_output(["b", "a"], None, "m")
