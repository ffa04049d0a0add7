"""Which attacker a pair of source and target stands for."""

import pytest

from satm_tf.evaluation.rungs import RUNGS, Group, rung_of

GROUPS = {"readers.satm": Group("same_scheme", "satm"), "thieves": Group("public_weights")}


@pytest.mark.parametrize(
    ("source", "target", "rung"),
    [
        ("", "satm/a", "clean"),
        ("satm/a", "satm/a", "white_box"),
        ("satm/b", "satm/a", "partner"),
        ("ensemble/b", "satm/a", ""),
        ("holdout/c", "satm/a", "unseen"),
        ("defended/c", "satm/a", "defended"),
        ("thieves/a", "satm/a", "public_weights"),
        ("readers.satm/c", "satm/a", "same_scheme"),
        ("readers.satm/c", "ensemble/a", ""),
        ("start/a", "satm/a", "start"),
        ("start/b", "satm/a", ""),
        ("start/mine", "mine", "start"),
        ("queries", "satm/a", "queries"),
        ("queries", "mine", "queries"),
        ("a", "b", ""),
    ],
)
def test_what_a_source_is_to_its_target(source, target, rung):
    assert rung_of(source, target, GROUPS) == rung


def test_the_ladder_is_in_order_of_strength():
    assert list(RUNGS) == ["unseen", "public_weights", "start", "defended", "same_scheme", "twin", "queries"]
