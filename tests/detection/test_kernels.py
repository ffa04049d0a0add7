from __future__ import annotations

import numpy as np
import tensorflow as tf
from sklearn.neighbors import KernelDensity
from sklearn.svm import SVC

from satm_tf.detection import DensityUncertainty, QuantisedRBF
from satm_tf.detection.base import look
from satm_tf.detection.kernels import constants, squared_distances


def numpy_seen(case, images):
    seen = look(case.network, images)
    return seen._replace(features=seen.features.numpy(), logits=seen.logits.numpy())


def test_the_density_is_that_of_scikit_learn_within_each_predicted_class(case):
    kind = DensityUncertainty(bandwidth=0.3)
    mixed = np.concatenate([case.clean[::2], case.adversarial[::2]])
    seen = numpy_seen(case, mixed)
    state = constants(kind.learn(seen, numpy_seen(case, case.adversarial), 0))
    points = state["points"].numpy()
    taken_for = case.network.classify(points).numpy().argmax(-1)
    assert len(set(taken_for)) > 1, "one class alone would not tell"
    expected = np.zeros(len(mixed))
    for row, (features, logits) in enumerate(zip(seen.features, seen.logits, strict=True)):
        own = points[taken_for == logits.argmax()]
        own = own if len(own) else points
        expected[row] = KernelDensity(bandwidth=0.3).fit(own).score_samples(features[None])[0]
    np.testing.assert_allclose(kind.log_density(state, seen), expected, rtol=1e-4, atol=1e-4)


def test_a_class_without_points_has_the_density_of_all(case):
    kind = DensityUncertainty(bandwidth=0.3)
    seen = numpy_seen(case, case.clean)
    only = seen._replace(logits=np.tile(np.float32([1, 0, 0]), (120, 1)))
    state = constants(kind.learn(only, numpy_seen(case, case.adversarial), 0))
    never = only._replace(logits=np.tile(np.float32([0, 0, 1]), (120, 1)))
    np.testing.assert_allclose(kind.log_density(state, never), kind.log_density(state, only), rtol=1e-5)


def test_the_uncertainty_is_the_variance_of_the_probabilities_under_the_masks(case):
    kind = DensityUncertainty(masks=5, dropout=0.25)
    seen = numpy_seen(case, case.clean)
    state = constants(kind.learn(seen, numpy_seen(case, case.adversarial), 0))
    masks = state["masks"].numpy()
    assert set(np.unique(masks).round(5)) == {0.0, np.float32(1 / 0.75).round(5)}
    each = np.stack([tf.nn.softmax(case.network.classify(seen.features * mask)) for mask in masks])
    # As the source writes it: the mean of the squares less the square of the mean.
    expected = (each**2).sum(-1).mean(0) - (each.mean(0) ** 2).sum(-1)
    np.testing.assert_allclose(kind.uncertainty(state, seen), expected, rtol=1e-4, atol=1e-6)


def test_the_bandwidth_is_the_likeliest(case):
    features = case.network.features(case.clean).numpy()
    state = DensityUncertainty(points=60).learn(numpy_seen(case, case.clean), numpy_seen(case, case.adversarial), 0)
    beside = np.array([each for each in features if not (np.abs(state["points"] - each).max(-1) < 1e-6).any()])
    assert len(beside) == 60
    likelihoods = [
        KernelDensity(bandwidth=float(state["bandwidth"]) * factor).fit(state["points"]).score(beside)
        for factor in (0.2, 1, 5)
    ]
    assert max(likelihoods) == likelihoods[1]


def test_the_machine_is_that_of_scikit_learn_on_codes_by_hand(case):
    fitted = QuantisedRBF(levels=3).fit(case.network, case.clean, case.adversarial, validation=case.validation)
    clean, adversarial = (case.network.features(some).numpy() for some in (case.clean, case.adversarial))
    cuts = np.quantile(clean, [1 / 3, 2 / 3], axis=0, method="midpoint")
    codes = [((some[:, None] > cuts).mean(1)) for some in (clean, adversarial)]
    assert set(np.unique(codes)) == {0, 0.5, 1}
    both = np.concatenate(codes)
    machine = SVC(gamma="scale", class_weight="balanced").fit(both, np.repeat([0, 1], 120))
    images = np.concatenate([case.clean, case.adversarial])
    np.testing.assert_allclose(
        fitted.score(case.network, images), machine.decision_function(both), rtol=1e-4, atol=1e-4
    )


def test_the_gradient_of_a_step_is_that_of_the_sigmoid_around_it(case):
    kind = QuantisedRBF()
    seen = numpy_seen(case, case.clean)
    state = constants(kind.learn(seen, numpy_seen(case, case.adversarial), 0))
    features = tf.constant(seen.features)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(features)
        codes = kind.codes(state, seen._replace(features=features))
        soft = tf.reduce_mean(tf.sigmoid((features[:, None] - state["cuts"]) / state["width"]), 1)
    levels = 3 * codes.numpy()
    np.testing.assert_allclose(levels, levels.round(), atol=1e-6)
    np.testing.assert_allclose(tape.gradient(codes, features), tape.gradient(soft, features), rtol=1e-5)
    assert np.abs(tape.gradient(codes, features)).min() > 0


def test_distances_far_from_the_origin_are_not_lost_to_rounding():
    points, others = 1000 + np.float32([[0.0, 0.25]]), 1000 + np.float32([[0.5, 0.25], [0.0, 0.0]])
    np.testing.assert_allclose(squared_distances(points, others), [[0.25, 0.0625]], rtol=1e-6)
