from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining
from satm_tf.attacks import FGSM
from satm_tf.training import EpsilonSchedule, RampedEpsilon, UniformEpsilon

EPSILON = 0.05
SEEN = []


@dataclass(frozen=True, kw_only=True)
class Watched(FGSM):
    """FGSM that keeps the largest change of each image, `[batch]`, of every batch."""

    def project(self, perturbed, images, epsilon):
        adversarial = super().project(perturbed, images, epsilon)
        sizes = tf.reduce_max(tf.abs(adversarial - images), axis=[1, 2, 3])
        kept = tf.py_function(lambda each: SEEN.append(each.numpy()), [sizes], [])
        with tf.control_dependencies([kept]):
            return tf.identity(adversarial)


@pytest.fixture
def sizes(make_network, images, labels):
    """A function that trains three epochs of two steps and gives the sizes `[steps, batch]`; then it validates."""

    def run(**fields):
        SEEN.clear()
        trainer = CoTraining({"a": make_network("a")}, learns_from="itself", attack=Watched(epsilon=EPSILON), **fields)
        trainer.compile(keras.optimizers.SGD(0.1))
        trainer.fit(images, labels, batch_size=6, epochs=3, verbose=0, shuffle=False)
        trained = np.array(SEEN)
        SEEN.clear()
        trainer.evaluate(images, labels, batch_size=6, verbose=0)
        return trained, np.array(SEEN)

    return run


def test_uniform_epsilon_is_one_for_each_image(sizes):
    trained, validated = sizes(epsilon_schedule=UniformEpsilon(low=0.2), seed=3)
    assert trained.shape == (6, 6)
    # Images are in [0.1, 0.9], so nothing is clipped, and FGSM uses all of its epsilon.
    assert trained.min() >= 0.2 * EPSILON - 1e-6
    assert trained.max() <= EPSILON + 1e-6
    assert len(np.unique(trained.round(6))) > 30, "the 36 draws differ"
    np.testing.assert_allclose(validated, EPSILON, atol=1e-6)


def test_uniform_shares_are_uniform():
    shares = UniformEpsilon(low=0.4).share(tf.constant(0.5), tf.constant(10_000), tf.constant([1, 2])).numpy()
    assert 0.4 <= shares.min() < shares.max() < 1
    # Five standard errors of a mean of 10,000 draws: 5 * 0.6 / sqrt(12 * 10,000) = 0.009.
    assert np.mean(shares) == pytest.approx(0.7, abs=0.009)
    assert np.mean(shares < 0.55) == pytest.approx(0.25, abs=0.022)


def test_ramped_epsilon_grows_with_the_steps(sizes):
    trained, validated = sizes(epsilon_schedule=RampedEpsilon(over=0.5, start=0.1))
    # Six steps are planned, so the ramp ends with the third.
    expected = EPSILON * (0.1 + 0.9 * np.minimum(np.arange(6) / 6 / 0.5, 1))
    np.testing.assert_allclose(trained, np.repeat(expected[:, None], 6, axis=1), atol=1e-6)
    np.testing.assert_allclose(validated, EPSILON, atol=1e-6)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.25), (0.1, 0.4375), (0.4, 1.0), (1.0, 1.0)])
def test_ramp_in_closed_form(progress, share):
    ramp = RampedEpsilon(over=0.4, start=0.25)
    assert float(ramp.share(tf.constant(progress), tf.constant(3), tf.constant([0, 0]))) == pytest.approx(share)


@pytest.mark.parametrize(
    ("schedule", "mistake"),
    [
        (UniformEpsilon, {"low": 1.1}),
        (UniformEpsilon, {"low": -0.1}),
        (RampedEpsilon, {"over": 0.0}),
        (RampedEpsilon, {"over": 1.5}),
        (RampedEpsilon, {"start": 2.0}),
    ],
)
def test_mistakes_are_named(schedule, mistake):
    (name,) = mistake
    with pytest.raises(ValueError, match=f"Received: .*{name}={mistake[name]}"):
        schedule(**mistake)


def test_an_unfinished_schedule_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match="implement `share`"):
        EpsilonSchedule().share(tf.constant(0.0), tf.constant(1), tf.constant([0, 0]))
