"""The sentences of a report, from predictions made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from satm_tf.evaluation import Predictions
from satm_tf.evaluation.report.answer import answer

IMAGES, EPSILON = 200, 0.1


def predictions(**kept):
    """Of one network for each scheme, or of those that are named: how many of 200 images stay right, by rung.

    They are the first ones, so that sets nest.
    """
    sources = {"clean": "", "unseen": "holdout/b", "start": "start/a", "queries": "queries"}
    rows, cells = [], []
    labels = np.arange(IMAGES, dtype=np.int32) % 4
    for scheme, rungs in kept.items():
        for rung, right in rungs.items():
            target = scheme if "/" in scheme else f"{scheme}/a"
            attack, epsilon = ("clean", 0.0) if rung == "clean" else ("fgsm", EPSILON)
            cells.append((attack, epsilon, sources.get(rung, target), target))
            rows.append(np.where(np.arange(IMAGES) < right, labels, (labels + 1) % 4))
    frame = pd.DataFrame(cells, columns=["attack", "epsilon", "source", "target"])
    return Predictions(frame, np.array(rows, np.uint8), labels, 4)


UNDEFENDED = {"clean": 160, "unseen": 80, "start": 0, "white_box": 0}


def test_a_defence_that_helps_names_its_attackers_its_price_and_what_is_left_open():
    defended = {"clean": 150, "unseen": 140, "start": 2, "white_box": 0}
    first, price, left_open = answer(predictions(undefended=UNDEFENDED, satm=defended))
    assert first == "satm helps against unseen models (40.0% → 70.0%)."
    # 10 of 200 images are lost, none is gained.
    assert price.startswith("On clean images it costs accuracy (80.0% → 75.0%: -5.0 points, 95 % interval -")
    assert left_open == (
        "It does not protect against the network that training started from (1.0% left) and white-box attacks "
        "(0.0% left)."
    )


def test_the_worst_attacker_leads_where_the_defence_withstands_it_and_those_that_do_as_well_are_named():
    defended = {"clean": 160, "unseen": 140, "start": 100, "white_box": 50}
    found = predictions(undefended=UNDEFENDED, satm=UNDEFENDED, past=defended, other={**defended, "unseen": 120})
    first, price, *rest = answer(found)
    assert first.startswith(
        "past helps against unseen models and the network that training started from. Under the worst attacker for "
        "each image, accuracy rises: 0.0% → 50.0% (+50.0 points, 95 % interval +42.5 to +56.5)."
    )
    assert price.startswith("On clean images it makes no significant difference (80.0% → 80.0%: +0.0")
    assert rest == ["Under the worst of all attackers, other cannot be distinguished from it."]


def test_a_network_that_only_the_defence_has_is_not_in_the_gain():
    defended = {"clean": 150, "unseen": 140}
    partner = {"clean": 200, "unseen": 200}
    first, price, *_ = answer(predictions(**{"undefended": UNDEFENDED, "satm": defended, "satm/b": partner}))
    assert "40.0% → 70.0% (+30.0 points" in first
    assert "(80.0% → 75.0%: -5.0 points" in price


def test_a_defence_that_does_not_help_is_told_so():
    worse = {"clean": 120, "unseen": 70, "start": 0, "white_box": 0}
    first, price, left_open = answer(predictions(undefended=UNDEFENDED, satm=worse))
    assert first.startswith(
        "No defence helped significantly. The best one, satm, compared with undefended: unseen models 40.0% →"
    )
    assert "costs accuracy" in price
    assert "unseen models (35.0% left)" in left_open


@pytest.mark.parametrize(
    ("kept", "sentences"),
    [
        (
            {"satm": {"clean": 160, "white_box": 10}},
            ["No attack without the weights was measured, so this page cannot say what a network withstands."],
        ),
        (
            {"undefended": {"clean": 160, "unseen": 80}},
            ["Only undefended was measured. Its accuracy is 80.0% on clean images and 40.0% under unseen models."],
        ),
        (
            {"satm": {"clean": 160, "unseen": 80}},
            [
                "satm is the most robust. Its accuracy is 80.0% on clean images and 40.0% under unseen models.",
                "No undefended network was measured for comparison, so this page cannot say what a defence gained.",
            ],
        ),
    ],
)
def test_without_a_ladder_or_anything_to_compare_with_it_says_so(kept, sentences):
    assert answer(predictions(**kept)) == sentences


def test_a_network_at_chance_comes_first():
    first, *_ = answer(predictions(undefended=UNDEFENDED, satm={"clean": 50, "unseen": 50}))
    assert first == "satm is no better than chance on clean images: ignore all other figures for it."
