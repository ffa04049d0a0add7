from __future__ import annotations

import numpy as np
import pytest

from satm_tf import attacks, detection
from satm_tf.detection import measure
from tests.detection.test_guarded import dark, guard, linear  # noqa: F401  (fixtures)


def test_the_figures_by_hand(linear, dark):  # noqa: F811
    """The planted detector of brightness in the top row, on images whose top rows are known."""
    detector = guard(linear, dark).detector
    labels = np.zeros(40, np.int32)
    labels[:10] = 1  # which the network, for dark images, gets wrong
    bright = dark.copy()
    bright[20:, 0] = 0.9  # seen, all of class 0 still
    bright[:5, 1:] = 0.8  # of class 1 then, and not seen
    frame = measure({"top": detector, "other": detector}, linear, dark, labels, {"none": dark, "bright": bright})
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


def test_the_attacker_who_knows_it_is_measured_on_the_guarded_model(linear, dark):  # noqa: F811
    guarded, labels = guard(linear, dark), np.zeros(40, np.int32)
    crafted = {
        "unaware": attacks.PGD(epsilon=0.25).craft(linear, dark, labels),
        "joint": attacks.APGD(epsilon=0.25, loss="evading_margin", steps=40).craft(guarded, dark, labels),
    }
    held = measure({"top": guarded.detector}, linear, dark, labels, crafted).set_index("attack").held
    assert held.to_dict() == {"unaware": 1.0, "joint": 0.0}


def test_what_does_not_match_is_refused(linear, dark):  # noqa: F811
    detector = guard(linear, dark).detector
    assert isinstance(detector, detection.FittedDetector)
    with pytest.raises(ValueError, match=r"Received: 40 images, and \{'labels': 40, 'short': 3\}"):
        measure({"top": detector}, linear, dark, np.zeros(40), {"short": dark[:3]})
