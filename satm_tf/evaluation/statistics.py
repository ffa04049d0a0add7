"""How certain a figure is: intervals of accuracies, paired tests of two, repeats over folds and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

# The special functions, not scipy.stats: that takes a second to import and ten milliseconds for one binomial test.
from scipy import special

REPEATS = ("fold", "seed")
SIGNIFICANCE = 0.01
"""A paired difference counts at a p-value below this, divided by the number of comparisons (Bonferroni).

With ten checks of a handful of networks, 0.05 would raise a false alarm in every report.
"""


def wilson_interval(hits: Any, images: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """The confidence interval of a share of images.

    Args:
        hits: Number of images counted, such as those classified correctly: a number, or an array.
        images: Number of all images, likewise. Where it is 0 the interval is [0, 1].
        confidence: In (0, 1).

    Returns:
        The lower and the upper end, in [0, 1].

    Example:
        >>> low, high = wilson_interval(90, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)

    Source:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927, without correction
        for continuity.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    hits, images = np.asarray(hits, float), np.asarray(images, float)
    # Half a hit in no images gives the widest interval.
    rate = np.divide(hits, images, out=np.full(np.broadcast(hits, images).shape, 0.5), where=images > 0)
    centre, spread = images * rate + z**2 / 2, z * np.sqrt(images * rate * (1 - rate) + z**2 / 4)
    low, high = (centre - spread) / (images + z**2), (centre + spread) / (images + z**2)
    # With no hits or only hits, the ends are 0 and 1 but for rounding; without images, the interval is [0, 1].
    low, high = np.where((hits == 0) | (images == 0), 0.0, low), np.where((hits == images) | (images == 0), 1.0, high)
    return low[()], high[()]


class Paired(NamedTuple):
    """Two classifications of the same images, compared."""

    difference: float  # the second accuracy minus the first
    low: float  # the ends of the difference's 95 % interval
    high: float
    only_first: int  # how many images only the first classified correctly
    only_second: int
    # McNemar's exact test, two-sided: the probability of a split of those images at least as uneven, if the two do not
    # differ.
    p_value: float

    def rises(self, comparisons: int = 1) -> bool:
        """Whether the second accuracy is significantly higher, as one of so many comparisons."""
        return self.difference > 0 and self.p_value < SIGNIFICANCE / comparisons

    def falls(self, comparisons: int = 1) -> bool:
        """Whether the second accuracy is significantly lower, as one of so many comparisons."""
        return self.difference < 0 and self.p_value < SIGNIFICANCE / comparisons


def compare_paired(first: Any, second: Any) -> Paired:
    """Compares two classifications of the same images: McNemar's exact test, and the difference with its interval.

    Args:
        first: Whether each image was classified correctly, bool `[images]`.
        second: The same for the same images in another classification.

    Raises:
        ValueError: If the two differ in length, or are empty.

    Example:
        >>> compare_paired([True] * 10, [False] * 9 + [True]).p_value
        0.00390625

    Source:
        McNemar, Psychometrika 1947, with the binomial distribution instead of chi-squared; the interval is that of
        Agresti and Min, "Simple Improved Confidence Intervals for Comparing Matched Proportions", Statistics in
        Medicine 2005: Wald's after half an image is added to each of the four cells.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(
            "Paired classifications must be two vectors of the same length, for the same images. Received shapes: "
            f"{first.shape} and {second.shape}"
        )
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    images = first.size + 2
    centre = (only_second - only_first) / images
    spread = math.sqrt((only_first + only_second + 1) / images - centre**2) / math.sqrt(images)
    spread *= NormalDist().inv_cdf(0.975)
    return Paired(
        difference=(only_second - only_first) / first.size,
        low=max(centre - spread, -1.0),
        high=min(centre + spread, 1.0),
        only_first=only_first,
        only_second=only_second,
        # Twice the binomial distribution function of the smaller count: the distribution is symmetric.
        p_value=min(1.0, 2 * float(special.bdtr(min(only_first, only_second), only_first + only_second, 0.5))),
    )


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of values, such as one difference for each fold or seed.

    Args:
        values: Two or more.

    Returns:
        The lower and the upper end; NaN for fewer than two values.

    Example:
        >>> mean_interval([0.02, 0.04, 0.03])
        (0.0051..., 0.0548...)
    """
    sample = np.asarray(values, float)
    if sample.size < 2:
        return math.nan, math.nan
    half = float(special.stdtrit(sample.size - 1, 0.975)) * sample.std(ddof=1) / math.sqrt(sample.size)
    return float(sample.mean() - half), float(sample.mean() + half)


def over_repeats(results: pd.DataFrame, values: Sequence[str] = ("accuracy",)) -> pd.DataFrame:
    """Means and standard deviations over folds and seeds.

    Args:
        results: Rows of `transfer_matrix`, one or more for each fold or seed, with the column `fold`, `seed` or both.
        values: The columns to average.

    Returns:
        A frame indexed by `attack`, `epsilon`, `source` and `target`, with the columns `<value>_mean` and `<value>_std`
        (of the sample; NaN for a single repeat) for each value, and `repeats`, their number.

    Raises:
        ValueError: If the rows have neither column, or a fold and seed has a cell twice.
    """
    keys = ["attack", "epsilon", "source", "target"]
    repeats = [name for name in REPEATS if name in results]
    if not repeats:
        raise ValueError(f"Averaging over repeats needs a column {' or '.join(REPEATS)}. Received: {list(results)}")
    twice = results.duplicated([*keys, *repeats])
    if twice.any():
        raise ValueError(
            f"Each cell must have one row for each {' and '.join(repeats)}. Received: two of "
            f"{results[twice].iloc[0][[*keys, *repeats]].to_dict()}"
        )
    groups = results.groupby(keys, sort=False)
    columns = {f"{value}_{kind}": getattr(groups[value], kind)() for value in values for kind in ("mean", "std")}
    return pd.DataFrame({**columns, "repeats": groups.size()})
