"""Draws ladder.png from the points of a study, its one argument: docs/results/fashion_mnist/test_points.csv."""

import sys
from pathlib import Path

import pandas as pd

from satm_tf.evaluation import mean_interval
from satm_tf.evaluation.report.answer import LABELS
from satm_tf.evaluation.report.figures import ladder

SHOWN = ("clean", "unseen", "defended", "twin", "queries", "worst", "white_box")

points = pd.read_csv(sys.argv[1])
rows = {}
for scheme, seeds in points.groupby("scheme", sort=False):
    row: dict[tuple[str, str], float] = {}
    for column in SHOWN:
        low, high = mean_interval(seeds[column].tolist())
        row[column, "accuracy"] = seeds[column].mean()
        row |= {(column, "low"): max(low, 0.0), (column, "high"): min(high, 1.0)}
    rows[str(scheme).rsplit("-", 1)[0]] = row
table = pd.DataFrame.from_dict(rows, orient="index")
table.columns = pd.MultiIndex.from_tuples(table.columns, names=["rung", "value"])
path = Path(__file__).with_suffix(".png")
ladder(table, {**LABELS, "worst": "worst rung"}, path, "")
path.with_suffix(".csv").unlink()
