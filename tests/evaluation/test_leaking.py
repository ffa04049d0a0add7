import numpy as np
import pandas as pd
import pytest

from satm_tf.evaluation import Predictions, label_leaking
from satm_tf.evaluation.leaking import against_clean
from satm_tf.evaluation.statistics import compare_paired


def counted(right, *changes, images=1000):
    """Predictions about images of class 0: clean ones of which so many are right, and for each attacker how many of
    those are lost and how many of the others are won."""
    rows = [np.arange(images) < right]
    for lost, won in changes:
        row = rows[0].copy()
        row[:lost], row[right : right + won] = False, True
        rows.append(row)
    sources = ["b", "c"][: len(changes)]
    cells = [("clean", 0.0, "", "a"), *(("fgsm", 0.1, source, "a") for source in sources)]
    frame = pd.DataFrame(cells, columns=["attack", "epsilon", "source", "target"])
    return Predictions(frame, (~np.array(rows)).astype(np.uint8), np.zeros(images, np.int32), 2)


def test_the_colluding_pair_of_the_papers_printed_recipe_is_caught():
    checked = label_leaking(counted(878, (10, 98), (150, 37)))
    assert checked.drop(columns="p_value").values.tolist() == [
        ["fgsm", 0.1, "b", "a", 0.966, 0.878, pytest.approx(0.088), True],
        ["fgsm", 0.1, "c", "a", 0.765, 0.878, pytest.approx(-0.113), False],
    ]
    expected = compare_paired(np.repeat([True, False], [10, 98]), np.repeat([False, True], [10, 98])).p_value
    assert checked.p_value[0] == expected


def test_a_difference_within_the_noise_is_no_leak():
    # 72 won against 60 lost is p = 0.34, ten times as many of each 0.001.
    assert not label_leaking(counted(878, (60, 72), (60, 82))).leaks.any()
    assert label_leaking(counted(8780, (600, 720), (600, 820), images=10_000)).leaks.all()


def test_pairing_finds_what_two_independent_shares_would_not():
    # Eight points of 100 images are within the noise of two shares, and no accident where none is lost.
    assert label_leaking(counted(85, (0, 8), images=100)).leaks.tolist() == [True]


def test_every_cell_of_a_target_is_a_comparison():
    # p = 2 / 2**8 = 0.0078: below 0.01 alone, not below 0.01 / 2.
    assert label_leaking(counted(85, (0, 8), images=100)).leaks.tolist() == [True]
    assert label_leaking(counted(85, (0, 8), (5, 5), images=100)).leaks.tolist() == [False, False]


def test_repeats_are_tested_together_each_against_its_own_clean_images():
    folds = counted(878, (0, 5), (50, 50)), counted(960, (0, 6), (9, 3))
    assert not label_leaking(folds[0]).leaks.any()
    checked = label_leaking(*folds)
    assert checked.leaks.tolist() == [True, False]
    assert checked.accuracy.tolist() == [0.9245, 0.916]
    assert checked.clean_accuracy.tolist() == [0.919, 0.919]
    # Eleven images differ over both folds, all of them won.
    assert checked.p_value[0] == pytest.approx(2 / 2**11)


def test_a_target_that_nobody_attacks_has_no_row_and_one_without_clean_images_is_an_error():
    alone = counted(90, images=100)
    assert label_leaking(alone).empty
    measured = counted(90, (5, 5), images=100)
    without = Predictions(measured.cells[1:].reset_index(drop=True), measured.predicted[1:], measured.labels, 2)
    with pytest.raises(KeyError, match="clean"):
        label_leaking(without)
    with pytest.raises(TypeError, match=r"predictions\.npz.*Received: DataFrame"):
        label_leaking(measured.frame())


def test_the_rule_stands_by_itself():
    found = against_clean(
        np.array([True, False] * 10), {"all": np.ones(20, bool), "same": np.array([True, False] * 10)}
    )
    assert found["all"]._asdict() == {
        "accuracy": 1.0,
        "clean_accuracy": 0.5,
        "difference": 0.5,
        "p_value": pytest.approx(2 / 2**10),
        "leaks": True,
    }
    assert not found["same"].leaks
