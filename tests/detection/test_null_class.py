from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.detection import Guarded, NullClass


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
