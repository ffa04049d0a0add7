"""Verdicts on facts made by hand: when there is nothing to mask, and what an earlier self tells."""

import dataclasses

import numpy as np

from satm_tf.evaluation.masking.verdicts import CHECKS, DETECTED, NOT_APPLICABLE, NOT_DETECTED, Facts, Strength, judge

IMAGES = 100


def right(count):
    """The first so many of the images."""
    return np.arange(IMAGES) < count


def facts(**changed):
    """A network that its own gradient takes from 80 to 40 of 100 images, and other attacks to more."""
    found = {
        "network": "a",
        "num_classes": 4,
        "clean": right(80),
        "losses": None,
        "single_step": right(50),
        "iterative": right(40),
        "unbounded": right(0),
        "noise": right(78),
        "square": right(60),
        "auto_attack": right(38),
        "transferred": {("single step", "b"): right(60)},
    }
    return Facts(**{**found, **changed})


def of(found):
    return {verdict.check: verdict for verdict in judge(found)}


def test_where_the_gradient_leaves_nothing_there_is_nothing_to_mask():
    compared = {name for name, verdict in of(facts()).items() if verdict.verdict == NOT_DETECTED}
    assert compared >= {"iterative against single step", "black box against white box", "AutoAttack"}
    empty = of(facts(single_step=right(10), iterative=right(1), auto_attack=right(1)))
    for name in compared - {"label leaking"}:
        assert empty[name].verdict == NOT_APPLICABLE, name
    assert empty["label leaking"].verdict == NOT_DETECTED
    assert empty["AutoAttack"].explanation == "Accuracy is 1.0% under AutoAttack, and 1.0% under gradient attacks."
    # Many steps that find less than one are a symptom, whatever one finds.
    assert of(facts(single_step=right(0)))["iterative against single step"].verdict == DETECTED


def test_to_a_network_at_chance_no_check_applies():
    verdicts = of(facts(clean=right(27)))
    assert list(verdicts) == list(CHECKS)
    assert {verdict.verdict for verdict in verdicts.values()} == {NOT_APPLICABLE}
    assert "27.0%, no better than chance" in verdicts["gradient"].explanation
    assert of(facts(clean=right(28)))["gradient"].verdict == DETECTED, "there is no gradient"


def test_weak_examples_are_held_against_a_network_only_if_its_earlier_self_made_stronger_ones():
    weak = Strength(clean=right(90), noise=right(88), own=right(88), before=None, others=[right(50)])
    for before, verdict in ((None, DETECTED), (right(50), DETECTED), (right(88), NOT_DETECTED)):
        strength = {"b": dataclasses.replace(weak, before=before)}
        assert of(facts(strength=strength))["strength of own examples"].verdict == verdict
