"""The worst attacker, image by image, and schemes compared rung by rung."""

import numpy as np
import pandas as pd
import pytest

from satm_tf.evaluation import Predictions, compare_ladder, ladder_table
from satm_tf.evaluation.rungs import RUNGS, Group, rungs_of
from satm_tf.evaluation.statistics import wilson_interval

TARGETS = ["ensemble/a", "ensemble/b", "satm/a", "satm/b"]
SOURCES = [*TARGETS, "holdout/c", "start/a", "start/b", "readers.ensemble/c", "readers.satm/c"]
GROUPS = {f"readers.{scheme}": Group("same_scheme", scheme) for scheme in ("ensemble", "satm")}


@pytest.fixture(scope="module")
def predictions():
    """Random predictions of three classes for fifty images; queries on the first twenty only."""
    cells = [("clean", 0.0, "", target) for target in [*TARGETS, "holdout/c"]]
    cells += [(attack, epsilon, source, target) for attack, epsilon in (("x", 0.1), ("y", 0.1), ("y", 0.2))
              for source in SOURCES for target in TARGETS]  # fmt: skip
    cells += [("square-50", 0.1, "queries", target) for target in TARGETS]
    frame = pd.DataFrame(cells, columns=["attack", "epsilon", "source", "target"])
    frame = frame.assign(rung=rungs_of(frame.source, frame.target, GROUPS))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 50).astype(np.int32)
    wrong = rng.uniform(size=[len(frame), 50]) < 0.15
    predicted = np.where(wrong, (labels + 1) % 3, labels).astype(np.int8)
    predicted[frame.rung == "queries", 20:] = -1
    return Predictions(frame, predicted, labels, 3)


def recomputed(predictions, target, chosen, epsilon=9.0):
    """By hand: an image stands if no row of the rungs gets it wrong."""
    standing, measured = np.ones(50, bool), np.ones(50, bool)
    for row, cell in zip(predictions.predicted, predictions.cells.itertuples(), strict=True):
        if cell.target == target and cell.rung in chosen and cell.epsilon <= epsilon:
            standing &= row == predictions.labels
            measured &= row >= 0
    return standing[measured]


def test_worst_equals_a_recomputation(predictions):
    for target in TARGETS:
        for rungs in (["unseen"], ["unseen", "start"], ["queries"], list(RUNGS), ["white_box"]):
            for epsilon in (0.1, 0.2):
                expected = recomputed(predictions, target, rungs, epsilon)
                np.testing.assert_array_equal(predictions.worst(target, rungs, epsilon), expected)
    assert len(predictions.worst("satm/a")) == 20, "queries were made for twenty images"
    with pytest.raises(KeyError, match="not measured on any of the rungs twin"):
        predictions.worst("satm/a", ["twin"])


def test_the_ladder_has_a_column_for_each_rung_that_was_measured(predictions):
    table = ladder_table(predictions)
    rungs = ["clean", "unseen", "start", "same_scheme", "queries", "worst", "white_box"]
    assert list(table.columns.get_level_values("rung").unique()) == rungs
    assert list(table.index) == TARGETS, "the holdout is nobody's defence"
    for column, chosen in [*((rung, [rung]) for rung in rungs if rung != "worst"), ("worst", RUNGS)]:
        right = recomputed(predictions, "satm/b", chosen)
        low, high = wilson_interval(right.sum(), len(right))
        assert table.loc["satm/b", column].tolist() == pytest.approx([right.mean(), low, high, len(right)])
    by_scheme = ladder_table(predictions, by="scheme", epsilon=0.1)
    pair = [recomputed(predictions, f"satm/{name}", RUNGS, 0.1).mean() for name in "ab"]
    assert by_scheme.loc["satm", ("worst", "accuracy")] == pytest.approx(np.mean(pair))
    with pytest.raises(ValueError, match="by='network'"):
        ladder_table(predictions, by="network")


def test_two_schemes_are_compared_on_the_same_images(predictions):
    compared = compare_ladder(predictions, "ensemble", "satm").set_index(["network", "rung"])
    assert list(compared.loc["a"].index) == [
        "clean", "unseen", "start", "same_scheme", "queries", "white_box", "worst",
    ]  # fmt: skip
    one, two = (recomputed(predictions, f"{scheme}/a", RUNGS) for scheme in ("ensemble", "satm"))
    row = compared.loc[("a", "worst")]
    assert row[["ensemble", "satm", "images"]].tolist() == [one.mean(), two.mean(), 20]
    assert (row.only_first, row.only_second) == ((one & ~two).sum(), (two & ~one).sum())
    with pytest.raises(ValueError, match="'satm' and 'pgd'"):
        compare_ladder(predictions, "satm", "pgd")


def test_a_comparison_takes_the_attackers_that_both_have_met(predictions):
    lacking = predictions.cells.rung.eq("same_scheme") & predictions.cells.target.eq("ensemble/a")
    fewer = Predictions(predictions.cells[~lacking], predictions.predicted[~lacking], predictions.labels, 3)
    row = compare_ladder(fewer, "ensemble", "satm").set_index(["network", "rung"]).loc[("a", "worst")]
    assert row.satm == recomputed(predictions, "satm/a", set(RUNGS) - {"same_scheme"}).mean()


def test_images_without_a_query_are_not_counted(predictions, tmp_path):
    predictions.save(tmp_path / "predictions.npz")
    read = Predictions.load(tmp_path / "predictions.npz")
    pd.testing.assert_frame_equal(read.cells, predictions.cells)
    frame = read.frame()
    queried = frame[frame.rung == "queries"]
    assert set(queried.images) == {20}
    cell = queried.iloc[0][["attack", "epsilon", "source", "target"]]
    assert queried.iloc[0].accuracy == read.correct(*cell)[:20].mean()
    assert read.confusion(*cell).sum() == 20
