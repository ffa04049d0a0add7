"""Draws ladder.png from the points of a study, its first argument, for the schemes that follow it."""

import sys
from pathlib import Path

import pandas as pd

from satm_tf.evaluation import mean_interval
from satm_tf.evaluation.report.answer import LABELS
from satm_tf.evaluation.report.figures import ladder

SHOWN = ("clean", "unseen", "defended", "twin", "start", "queries", "white_box")

points = pd.read_csv(sys.argv[1])
rows = {}
for scheme in sys.argv[2:]:
    seeds = points[points.scheme == scheme]
    row: dict[tuple[str, str], float] = {}
    for column in (each for each in SHOWN if each in points):
        mean = float(seeds[column].mean())
        # Of two seeds Student's interval says nothing.
        low, high = mean_interval(seeds[column].tolist()) if len(seeds) > 2 else (mean, mean)
        row |= {(column, "accuracy"): mean, (column, "low"): max(low, 0.0), (column, "high"): min(high, 1.0)}
    rows[str(scheme).rsplit("-", 1)[0]] = row
table = pd.DataFrame.from_dict(rows, orient="index")
table.columns = pd.MultiIndex.from_tuples(table.columns, names=["rung", "value"])
path = Path(__file__).with_suffix(".png")
ladder(table, LABELS, path, "")
path.with_suffix(".csv").unlink()
