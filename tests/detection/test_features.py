from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.detection import FeatureClassifier, Guarded, NullClass, PrincipalComponents
from satm_tf.detection.base import Seen, look
from satm_tf.detection.kernels import constants
from satm_tf.training.domain import DomainHead


def test_the_classifier_is_the_domain_head_without_its_reversal(case):
    fitted = FeatureClassifier(hidden=8).fit(
        case.network, case.clean, case.adversarial, validation=case.validation, seed=1
    )
    head = DomainHead(8)
    head.build((None, 6))
    head.set_weights([fitted.state[name].numpy() for name in ("first", "first_bias", "second", "second_bias")])
    features = case.network.features(case.clean)
    np.testing.assert_allclose(
        fitted.score(case.network, case.clean), head.classify(features)[:, 1], rtol=1e-5, atol=1e-6
    )


def test_the_energy_in_low_components_by_hand(case):
    for of, values in (("features", case.network.features(case.clean)), ("pixels", case.clean.reshape(120, -1))):
        fitted = PrincipalComponents(of=of, low_ranked=0.5).fit(
            case.network, case.clean, case.adversarial, validation=case.validation
        )
        centred = np.asarray(values, np.float64) - np.mean(values, 0, dtype=np.float64)
        variances, axes = np.linalg.eigh(np.cov(centred.T))  # the smallest first
        low = len(variances) // 2
        energy = np.mean((centred @ axes[:, :low]) ** 2 / variances[:low], -1)
        # Whitening divides float32 features by small standard deviations.
        np.testing.assert_allclose(fitted.score(case.network, case.clean), energy, rtol=1e-3)


def test_components_of_rounding_alone_are_left_out():
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(size=(50, 2)), np.full((50, 1), 0.3)], 1).astype("float32")
    features[:, 2] += random.normal(0, 1e-6, 50)
    seen = Seen(None, features, None, None)
    state = PrincipalComponents(low_ranked=1.0).learn(seen, seen, 0)
    assert state["whitening"].shape == (3, 2)
    assert float(tf.reduce_max(PrincipalComponents(low_ranked=1.0).score(constants(state), seen))) < 10


def test_one_pixel_beside_a_plane_has_all_its_energy_in_the_low_components(case):
    fitted = PrincipalComponents(of="pixels").fit(
        case.network, case.clean, case.adversarial, validation=case.validation
    )
    beside = case.clean.copy()
    beside[:, 0, 0, 0] = 1 - beside[:, 0, 0, 0]
    assert np.mean(fitted.score(case.network, beside) > fitted.score(case.network, case.clean)) > 0.9
    assert look(case.network, beside).images is beside


def test_the_score_is_the_log_odds_of_the_null_class(case):
    network = case.network.with_null_class()
    kernel, bias = network._classification.get_weights()
    kernel[:, -1], bias[-1] = np.linspace(-1, 1, len(kernel)), 0.2
    network._classification.set_weights([kernel, bias])
    detector = NullClass().fit(network, case.clean, case.adversarial, validation=case.validation)
    probabilities = tf.nn.softmax(network.features(case.clean) @ kernel + bias)[:, -1]
    odds = np.log(probabilities / (1 - probabilities))
    np.testing.assert_allclose(detector.score(network, case.clean), odds, rtol=1e-4, atol=1e-5)
    logits = Guarded(network, detector)(case.clean)
    np.testing.assert_array_equal(np.argmax(logits, -1) == 3, detector.score(network, case.clean) > detector.threshold)


def test_a_network_without_one(case):
    with pytest.raises(ValueError, match=r"train network.with_null_class\(\) with null_share"):
        NullClass().fit(case.network, case.clean, case.adversarial, validation=case.validation)
