"""What every detector promises: each registered kind goes through it."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import detection
from satm_tf.configurable import serialize
from satm_tf.detection.base import look
from tests.detection.conftest import Case, build_network

KINDS = ["feature_classifier", "principal_components", "density_uncertainty", "quantised_rbf"]
OPTIONS = {"feature_classifier": {"hidden": 8}, "density_uncertainty": {"masks": 10}}


@pytest.fixture(scope="module", params=KINDS)
def fitted(request, case) -> detection.FittedDetector:
    kind = detection.get(request.param, **OPTIONS.get(request.param, {}))
    return kind.fit(case.network, case.clean, case.adversarial, validation=case.validation, seed=3)


def test_planted_examples_are_told_apart_and_of_the_clean_ones_five_percent_rejected(fitted, case: Case):
    clean, adversarial = (fitted.score(case.network, some).numpy() for some in (case.validation, case.adversarial))
    assert clean.dtype == np.float32
    assert np.count_nonzero(clean > fitted.threshold) == 5
    assert fitted.rates == {"clean_rejected": 0.05, "clean_images": 100}
    assert np.mean(adversarial > float(fitted.threshold)) > 0.9


def test_the_gradient_reaches_the_images_and_is_right(fitted, case: Case):
    images = tf.constant(case.adversarial[:4])
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(fitted.score(case.network, images))
    gradient = tape.gradient(total, images).numpy()
    assert np.all(np.abs(gradient).max((1, 2, 3)) > 1e-6)
    if fitted.detector.name == "quantised_rbf":
        return  # its gradient is the sigmoid's and not the step's, in test_kernels
    direction = gradient / np.linalg.norm(gradient)
    ahead, behind = (
        float(tf.reduce_sum(fitted.score(case.network, images + step * direction))) for step in (1e-2, -1e-2)
    )
    # A step long enough for float32, over which the slope of a smooth score changes by a few percent at most.
    np.testing.assert_allclose((ahead - behind) / 2e-2, np.linalg.norm(gradient), rtol=0.05)


def test_the_same_seed_gives_the_same_detector_and_a_file_keeps_it(fitted, case: Case, tmp_path):
    again = fitted.detector.fit(case.network, case.clean, case.adversarial, validation=case.validation, seed=3)
    keras.saving.save_model(fitted, tmp_path / "detector.keras")
    loaded = keras.saving.load_model(tmp_path / "detector.keras")
    assert loaded.detector == fitted.detector
    assert (loaded.rates, loaded.fitted_to) == (fitted.rates, fitted.fitted_to)
    for other in (again, loaded):
        for mine, its in zip(fitted.weights, other.weights, strict=True):
            np.testing.assert_array_equal(mine, its)
    np.testing.assert_array_equal(loaded.score(case.network, case.clean), fitted.score(case.network, case.clean))


def test_a_saved_model_gives_the_same_score(fitted, case: Case, tmp_path):
    module = tf.Module()
    module.weights = [variable.value for variable in [*case.network.variables, *fitted.variables]]
    specification = tf.TensorSpec([None, 4, 4, 3], tf.float32, name="images")
    score = tf.function(lambda images: {"score": fitted.score(case.network, images)}, input_signature=[specification])
    tf.saved_model.save(module, str(tmp_path), signatures=score)
    loaded = tf.saved_model.load(str(tmp_path))
    served = loaded.signatures["serving_default"](images=tf.constant(case.adversarial))["score"]
    np.testing.assert_allclose(served, fitted.score(case.network, case.adversarial), rtol=1e-5, atol=1e-5)


def test_the_rest_of_a_batch_does_not_matter(fitted, case: Case):
    alone = fitted.score(case.network, case.adversarial[:1])
    np.testing.assert_allclose(alone, fitted.score(case.network, case.adversarial)[:1], rtol=1e-4, atol=1e-4)


def test_configurations_are_values(case: Case):
    for kind in KINDS:
        assert detection.get(serialize(detection.get(kind))) == detection.get(kind)
    with pytest.raises(ValueError, match="Did you mean 'quantised_rbf'"):
        detection.get("quantized_rbf")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("feature_classifier", {"hidden": 0}),
        ("principal_components", {"low_ranked": 0.0}),
        ("principal_components", {"of": "pixel"}),
        ("density_uncertainty", {"dropout": 1.0}),
        ("density_uncertainty", {"bandwidth": 0.0}),
        ("quantised_rbf", {"levels": 1}),
    ],
)
def test_options_outside_their_range_are_refused(kind, options):
    with pytest.raises(ValueError, match="Received"):
        detection.get(kind, **options)


def test_what_cannot_be_fitted_is_said_first(case: Case):
    kind = detection.get("principal_components")

    def attempt(network=case.network, **arguments):
        given = {"clean": case.clean, "adversarial": case.adversarial, "validation": case.validation, **arguments}
        kind.fit(network, given.pop("clean"), given.pop("adversarial"), **given)

    with pytest.raises(ValueError, match="features of an ImageClassifier"):
        attempt(network=keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="clean must be at least 8 images"):
        attempt(clean=case.clean[:3])
    with pytest.raises(ValueError, match="validation must be at least 1 images of shape"):
        attempt(validation=case.validation[:, :2])
    with pytest.raises(ValueError, match=r"adversarial must lie in \[0, 1\]"):
        attempt(adversarial=255 * case.adversarial)
    with pytest.raises(ValueError, match="rejected must be a share"):
        attempt(rejected=1.0)
    with pytest.raises(ValueError, match="Received: all alike"):
        attempt(clean=np.full_like(case.clean, 0.5))


def test_without_scikit_learn_the_extra_is_named_and_scores_still_come(fitted, case: Case, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for module in [name for name in sys.modules if name.startswith("sklearn.")]:
        monkeypatch.setitem(sys.modules, module, None)
    assert fitted.score(case.network, case.clean).shape == 120
    with pytest.raises(ImportError, match=r"satm_tf\[detectors\]"):
        fitted.detector.fit(case.network, case.clean, case.adversarial, validation=case.validation)


def test_what_is_seen_is_what_the_network_answers(case: Case):
    seen = look(case.network, case.clean)
    np.testing.assert_allclose(seen.logits, case.network(case.clean), rtol=1e-6)
    assert build_network().feature_size == seen.features.shape[-1]
