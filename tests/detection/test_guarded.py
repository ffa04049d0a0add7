"""The model that rejects, and attackers who know of the detector, or seem to."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import ImageClassifier, attacks, detection
from satm_tf.models import load_model

EPSILON, STEPS = 0.25, 40


@dataclass(frozen=True, kw_only=True)
class TopRow(detection.Detector, name="planted_top_row"):
    """Rejects what is bright in the top row, which an attacker who knows it can leave dark."""

    stopped: bool = False

    def learn(self, clean, adversarial, seed):
        return {}

    def score(self, state, seen):
        score = tf.reduce_mean(seen.images[:, 0], [1, 2])
        return tf.stop_gradient(score) if self.stopped else score


@pytest.fixture(scope="module")
def linear():
    """Class 1 is a mean brightness of more than a half, so that an attacker who knows nothing brightens every pixel."""
    images = keras.Input((4, 4, 3))
    network = ImageClassifier(
        keras.Model(images, keras.layers.Flatten()(images), name="pixels"), 2, image_shape=(4, 4, 3), pooling=None
    )
    network._classification.set_weights([np.tile(np.float32([0, 1]), (48, 1)), np.float32([0, -24])])
    return network


@pytest.fixture(scope="module")
def dark():
    """Images of class 0 and of several brightnesses, at most 0.18 from the boundary."""
    random = np.random.default_rng(0)
    brightness = random.uniform(0.34, 0.4, (40, 1, 1, 1))
    return (brightness + random.uniform(-0.02, 0.02, (40, 4, 4, 3))).astype("float32")


def guard(network, dark, **options):
    planted = detection.get("planted_top_row", **options)
    return detection.Guarded(network, planted.fit(network, dark, dark, validation=dark))


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_a_planted_detector_is_fooled_by_who_knows_it_and_never_without_its_gradient(linear, dark, attack):
    labels = np.zeros(40, np.int32)
    joint = attacks.get(attack, epsilon=EPSILON, loss="evading_margin", steps=STEPS)
    guarded = guard(linear, dark)

    def answers(images):
        return guarded(images).numpy().argmax(-1)

    def fooled(model):
        return np.mean(answers(joint.craft(model, dark, labels)) == 1)

    assert np.mean(answers(dark) == 0) == 0.95
    unaware = attacks.get(attack, epsilon=EPSILON, steps=STEPS).craft(linear, dark, labels)
    assert np.all(linear(unaware).numpy().argmax(-1) == 1), "the plain network is fooled"
    assert np.all(answers(unaware) == 2), "and the detector sees it"
    assert fooled(guarded) == 1
    assert fooled(guard(linear, dark, stopped=True)) == 0, "an attack without the detector's gradient is found out"


def test_the_planted_detector_is_worth_something_in_a_smaller_ball(linear, dark):
    """Which is enough with the top row, and not for all images without it."""
    labels, guarded = np.zeros(40, np.int32), guard(linear, dark)
    joint = attacks.APGD(epsilon=0.18, loss="evading_margin", steps=STEPS)
    assert np.all(linear(attacks.FGSM(epsilon=0.18).craft(linear, dark, labels)).numpy().argmax(-1) == 1)
    assert 0 < np.mean(guarded(joint.craft(guarded, dark, labels)).numpy().argmax(-1) == 1) < 0.9


def test_the_figures_by_hand(linear, dark):
    """The planted detector of brightness in the top row, on images whose top rows are known."""
    detector = guard(linear, dark).detector
    labels = np.zeros(40, np.int32)
    labels[:10] = 1  # which the network, for dark images, gets wrong
    bright = dark.copy()
    bright[20:, 0] = 0.9  # seen, all of class 0 still
    bright[:5, 1:] = 0.8  # of class 1 then, and not seen
    frame = detection.measure(
        {"top": detector, "other": detector}, linear, dark, labels, {"none": dark, "bright": bright}
    )
    assert frame.groupby(["detector", "attack"]).size().tolist() == [1, 1, 1, 1]
    row = frame.set_index(["detector", "attack"]).loc[("top", "bright")]
    scores = dark[:, 0].mean((1, 2))
    rejected = scores > float(detector.threshold)
    assert rejected.sum() == 2
    assert row.clean_rejected == 0.05
    assert row.clean_accuracy == np.mean(~rejected & (labels == 0))
    assert row.adversarial_rejected == np.mean(rejected | (np.arange(40) >= 20))
    right = (np.arange(40) >= 10) | (np.arange(40) < 5)
    assert row.held == np.mean(right | rejected | (np.arange(40) >= 20))
    attacked = np.where(np.arange(40) >= 20, 0.9, scores)
    pairs = (attacked[:, None] > scores) + 0.5 * (attacked[:, None] == scores)
    # Ties of float32 scores and of their differences to the threshold may differ.
    assert row.auc == pytest.approx(pairs.mean(), abs=0.01)
    assert frame.set_index(["detector", "attack"]).auc[("other", "none")] == pytest.approx(0.5, abs=0.01)


def test_the_attacker_who_knows_it_is_measured_on_the_guarded_model(linear, dark):
    guarded, labels = guard(linear, dark), np.zeros(40, np.int32)
    crafted = {
        "unaware": attacks.PGD(epsilon=0.25).craft(linear, dark, labels),
        "joint": attacks.APGD(epsilon=0.25, loss="evading_margin", steps=40).craft(guarded, dark, labels),
    }
    held = detection.measure({"top": guarded.detector}, linear, dark, labels, crafted).set_index("attack").held
    assert held.to_dict() == {"unaware": 1.0, "joint": 0.0}


def test_what_does_not_match_is_refused(linear, dark):
    detector = guard(linear, dark).detector
    assert isinstance(detector, detection.FittedDetector)
    with pytest.raises(ValueError, match=r"Received: 40 images, and \{'labels': 40, 'short': 3\}"):
        detection.measure({"top": detector}, linear, dark, np.zeros(40), {"short": dark[:3]})


@pytest.fixture(scope="module")
def guarded(case):
    kind = detection.get("principal_components")
    return detection.Guarded(
        case.network, kind.fit(case.network, case.clean, case.adversarial, validation=case.validation)
    )


def test_the_last_logit_is_the_largest_exactly_where_the_score_exceeds_the_threshold(guarded, case):
    images = np.concatenate([case.validation, case.adversarial])
    logits = guarded(images).numpy()
    assert (logits.shape, logits.dtype) == ((220, 4), np.float32)
    rejected = guarded.detector.score(case.network, images).numpy() > float(guarded.detector.threshold)
    np.testing.assert_array_equal(logits.argmax(-1) == 3, rejected)
    assert 0 < rejected.mean() < 1
    plain = case.network(images).numpy()
    np.testing.assert_array_equal(logits[:, :3].argmax(-1), plain.argmax(-1))
    np.testing.assert_allclose(tf.nn.softmax(logits[:, :3]), tf.nn.softmax(plain), rtol=1e-5)


def test_a_file_keeps_it_and_every_entry_loads_it(guarded, case, tmp_path):
    guarded.save(tmp_path / "guarded.keras")
    loaded = load_model(tmp_path / "guarded.keras")
    assert (loaded.num_classes, loaded.image_shape, loaded.differentiable) == (4, (4, 4, 3), True)
    np.testing.assert_array_equal(loaded(case.adversarial), guarded(case.adversarial))


def test_attacks_go_through_it_in_one_graph_and_leave_it_as_it_is(guarded, case):
    before = [np.array(weight) for weight in guarded.weights]
    labels = case.network(case.clean).numpy().argmax(-1)
    attack = attacks.APGD(epsilon=0.5, loss="evading_margin", steps=20)
    adversarial = attack.craft(guarded, case.clean, labels)
    answers = guarded(adversarial).numpy().argmax(-1)
    assert np.mean((answers != labels) & (answers != 3)) > 0.5
    for old, new in zip(before, guarded.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    outcome = attack.outcome(guarded, case.clean, labels)
    np.testing.assert_array_equal(outcome.success, (outcome.after != labels) & (outcome.after.numpy() != 3))
