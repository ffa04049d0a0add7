import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf.serving import VerificationError, export_saved_model, signatures, verification

from .conftest import LABELS, SHAPE, build_network


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.float32) / 255


@pytest.mark.parametrize("kind", ["exported", "detected"])
def test_a_faithful_export_passes(kind, request):
    """Each was verified when it was written."""
    card = request.getfixturevalue(kind).folder / "assets.extra" / "model_card.json"
    differences = json.loads(card.read_text())["verification"]["largest_difference"]
    assert set(differences) == set(signatures.OUTPUTS)
    assert max(differences.values()) < 1e-6


def test_another_network_is_detected(exported, samples):
    """A single weight changed by a thousandth moves a probability by more than the tolerance."""
    other = build_network()
    kernel = other._classification.kernel
    kernel.assign(kernel + 1e-3 * tf.one_hot(0, kernel.shape[0])[:, None] * tf.one_hot(0, 4))
    with pytest.raises(VerificationError, match="may differ by at most 1e-05"):
        verification.verify(exported.folder, other, LABELS, samples)


def test_labels_in_another_order_are_detected(exported, samples):
    with pytest.raises(VerificationError, match="label"):
        verification.verify(exported.folder, exported.network, LABELS[::-1], samples)


def test_a_signature_that_lacks_an_output_is_detected(exported, samples, monkeypatch):
    monkeypatch.setitem(signatures.OUTPUTS, "features", ("features", "valid", "norm"))
    with pytest.raises(VerificationError, match="'features' must give features, valid, norm"):
        verification.verify(exported.folder, exported.network, LABELS, samples)


def test_an_export_that_differs_never_appears(exported, tmp_path, monkeypatch):
    """Decoding that is a level off: only `serving_bytes` shows it, and only there it is found."""
    from satm_tf.serving import decoding

    honest = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda contents, size: honest(contents, size) // 2)
    with pytest.raises(VerificationError, match="'serving_bytes' may differ"):
        export_saved_model(exported.network, tmp_path / "model", labels=LABELS)
    assert list((tmp_path / "model").iterdir()) == []
    assert not (tmp_path / "models.config").exists()


def test_another_detector_is_detected(detected, exported, detector, samples):
    with pytest.raises(VerificationError, match="must give probabilities, class_id, label, valid, adversarial_score"):
        verification.verify(exported.folder, exported.network, LABELS, samples, detector)
    for part, message in (("second_bias", "adversarial_score of '[a-z_]*' may differ"), ("threshold", "suspicious of")):
        copy = type(detector).from_config(detector.get_config())
        copy.set_weights(detector.get_weights())
        variable = copy.threshold if part == "threshold" else copy.state[part]
        # Beyond the scores of all samples, which are brighter than those that the threshold was set on.
        variable.assign(variable + 1000 * detector.spread)
        with pytest.raises(VerificationError, match=message):
            verification.verify(detected.folder, detected.network, LABELS, samples, copy)


def write(folder, function):
    module = tf.Module()
    module.f = tf.function(function, input_signature=[tf.TensorSpec([4], tf.float32)])
    tf.saved_model.save(module, str(folder))
    return verification.newer_operations(folder)


def test_operations_newer_than_tensorflow_2_15_are_named(exported, tmp_path):
    assert verification.newer_operations(exported.folder) == []
    assert write(tmp_path / "old", lambda x: tf.nn.relu(x) + 1) == []
    # An operation of TensorFlow 2.20, inside a function of the graph; and an attribute of 2.16 off its default.
    webp = getattr(tf.raw_ops, "DecodeWebP", None)
    if webp is not None:
        assert write(tmp_path / "new", lambda x: (webp(contents="", channels=3), x)[1]) == ["DecodeWebP"]
    scattered = write(
        tmp_path / "attribute",
        lambda x: tf.raw_ops.ScatterNd(indices=[[0]], updates=x[:1], shape=[4], bad_indices_policy="IGNORE"),
    )
    assert scattered == ["ScatterNd.bad_indices_policy"]


def test_half_precision_is_held_to_its_own_last_digit(exported):
    assert verification.tolerance(exported.network) == 1e-5
    layer = exported.network.backbone.layers[1]
    for policy, expected in (("mixed_float16", 2**-10), ("mixed_bfloat16", 2**-7)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layer, "_dtype_policy", keras.DTypePolicy(policy))
            assert verification.tolerance(exported.network) == expected
