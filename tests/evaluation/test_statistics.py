import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from satm_tf.evaluation.statistics import compare_paired, mean_interval, over_repeats, wilson_interval


@pytest.mark.parametrize(("hits", "images"), [(0, 10), (10, 10), (1, 3), (90, 100), (4321, 10_000), (1, 2)])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_wilson_is_that_of_statsmodels_and_scipy(hits, images, confidence):
    low, high = wilson_interval(hits, images, confidence)
    # Both compute in double precision, in another order.
    assert (low, high) == pytest.approx(proportion_confint(hits, images, 1 - confidence, method="wilson"), abs=1e-12)
    of_scipy = stats.binomtest(hits, images).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((of_scipy.low, of_scipy.high), abs=1e-12)


def test_wilson_of_many_at_once_and_of_no_images():
    low, high = wilson_interval([0, 90, 0], [10, 100, 0])
    assert low == pytest.approx([0, 0.82563, 0], abs=1e-5)
    assert high == pytest.approx([0.27753, 0.94477, 1], abs=1e-5)


def _pair(both, only_first, only_second, neither):
    cells = np.repeat(np.arange(4), [both, only_first, only_second, neither])
    return (cells == 0) | (cells == 1), (cells == 0) | (cells == 2)


@pytest.mark.parametrize(
    "counts",
    [(50, 0, 0, 5), (50, 9, 1, 5), (50, 1, 9, 5), (0, 5, 5, 0), (10, 6, 5, 3), (4000, 800, 900, 4300), (0, 1, 0, 0)],
)
def test_mcnemar_is_that_of_statsmodels(counts):
    both, only_first, only_second, neither = counts
    compared = compare_paired(*_pair(*counts))
    expected = mcnemar([[both, only_first], [only_second, neither]], exact=True)
    assert compared.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (compared.only_first, compared.only_second) == (only_first, only_second)
    assert compared.difference == (only_second - only_first) / sum(counts)
    assert compared.low <= compared.difference <= compared.high


def test_the_interval_of_a_paired_difference_by_hand():
    # 100 images, of which 12 only the second has right and 4 only the first: with half an image in each cell, the
    # difference is 8/102 and its variance (17/102 - (8/102)^2) / 102.
    compared = compare_paired(*_pair(60, 4, 12, 24))
    half = 1.959964 * math.sqrt((17 / 102 - (8 / 102) ** 2) / 102)
    assert (compared.low, compared.high) == pytest.approx((8 / 102 - half, 8 / 102 + half), abs=1e-6)


def test_the_paired_interval_covers_what_it_should():
    """Drawn 2,000 times with a true difference of 0.05; 95 % within 1.5 points, three standard errors of that share."""
    generator = np.random.default_rng(0)
    cells = generator.choice(4, size=(2000, 150), p=[0.6, 0.10, 0.15, 0.15])
    hits = 0
    for row in cells:
        compared = compare_paired((row == 0) | (row == 1), (row == 0) | (row == 2))
        hits += compared.low <= 0.05 <= compared.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_what_is_not_paired_is_refused(first, second):
    with pytest.raises(ValueError, match="two vectors of the same length"):
        compare_paired(first, second)


@pytest.mark.parametrize("values", [[0.02, 0.04, 0.03], [1.0, 1.0], list(range(30))])
def test_students_interval_is_that_of_scipy(values):
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95) if len(set(values)) > 1 else (1.0, 1.0)
    # One quantile in double precision, by two routines.
    assert mean_interval(values) == pytest.approx(tuple(expected), abs=1e-9)


def test_one_value_has_no_interval():
    assert all(math.isnan(end) for end in mean_interval([0.5]))


@pytest.fixture
def folds():
    rows = [
        {"fold": fold, "attack": "pgd", "epsilon": 0.1, "source": "a", "target": "b", "accuracy": rate}
        for fold, rate in enumerate([0.5, 0.6, 0.7])
    ]
    return pd.DataFrame([*rows, {**rows[0], "attack": "fgsm"}])


def test_mean_and_deviation_over_folds(folds):
    found = over_repeats(folds)
    cell = found.loc[("pgd", 0.1, "a", "b")]
    assert cell.accuracy_mean == pytest.approx(0.6)
    assert cell.accuracy_std == pytest.approx(stats.tstd([0.5, 0.6, 0.7]))
    assert cell.repeats == 3
    alone = found.loc[("fgsm", 0.1, "a", "b")]
    assert alone.repeats == 1
    assert math.isnan(alone.accuracy_std)


def test_repeats_that_cannot_be_told_apart_are_refused(folds):
    with pytest.raises(ValueError, match="one row for each fold"):
        over_repeats(pd.concat([folds, folds]))
    with pytest.raises(ValueError, match="needs a column fold or seed"):
        over_repeats(folds.drop(columns="fold"))
