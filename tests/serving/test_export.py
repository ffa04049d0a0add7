import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.serving import export_saved_model

NAMES = ["zero", "one", "two", "three"]

STRANGER = """
import sys
import numpy as np, tensorflow as tf
folder, images, answers = sys.argv[1:]
served = tf.saved_model.load(folder).signatures["serving_default"]
result = served(images=tf.constant(np.load(images)))
assert "satm_tf" not in sys.modules
kinds = {tf.string: "S"}
np.savez(answers, **{name: np.asarray(value.numpy(), kinds.get(value.dtype)) for name, value in result.items()})
"""


@pytest.fixture
def network(make_network, images):
    network = make_network("served", batch_norm=True, dropout=0.5)
    network(images, training=True)  # batch statistics that are not their initial values
    return network


def test_a_process_without_satm_tf_gives_the_same_answers(network, images, tmp_path):
    folder = export_saved_model(network, tmp_path / "model", labels=NAMES)
    np.save(tmp_path / "images.npy", images)
    subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder), str(tmp_path / "images.npy"), str(tmp_path / "answers.npz")],
        check=True,
        cwd=tmp_path,  # where satm_tf cannot be imported by accident from the checkout
    )
    answers = np.load(tmp_path / "answers.npz")
    logits = np.asarray(network(images, training=False), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(answers["probabilities"], expected, rtol=0, atol=1e-5)
    assert answers["class_id"].tolist() == expected.argmax(-1).tolist()
    assert answers["label"].tolist() == [NAMES[index].encode() for index in expected.argmax(-1)]


def test_versions_count_up_and_are_never_overwritten(network, tmp_path):
    root = tmp_path / "model"
    assert export_saved_model(network, root, labels=NAMES) == root / "1"
    assert export_saved_model(network, root, labels=NAMES, version=10) == root / "10"
    assert export_saved_model(network, root, labels=NAMES) == root / "11"
    with pytest.raises(FileExistsError, match="choose another version"):
        export_saved_model(network, root, labels=NAMES, version=10)
    assert sorted(path.name for path in root.iterdir()) == ["1", "10", "11"]


def test_a_failed_export_leaves_nothing(network, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("tensorflow.saved_model.save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_saved_model(network, tmp_path / "model", labels=NAMES)
    assert list((tmp_path / "model").iterdir()) == []


def test_bad_input(network, tmp_path):
    with pytest.raises(ValueError, match="a label for each of 4 classes"):
        export_saved_model(network, tmp_path, labels=["one"])
    with pytest.raises(ValueError, match="positive"):
        export_saved_model(network, tmp_path, labels=NAMES, version=0)
    assert not list(tmp_path.iterdir())


def test_images_of_another_size_are_refused(network, tmp_path, images):
    served = tf.saved_model.load(str(export_saved_model(network, tmp_path / "m", labels=NAMES)))
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        served.signatures["serving_default"](images=tf.zeros([1, 20, 16, 3]))
