"""Draws ladder.png from the points of a study, its first argument, for the schemes that follow: SCHEME or SCHEME=NAME.

    python docs/images/ladder.py docs/results/fashion_mnist/validation_points.csv undefended-w0=undefended \\
        ensemble-w3=ensemble satm-w3=satm pubdef-w3=pubdef pgd-w03=pgd rs_fgsm-w03="own rs_fgsm" live-w1=recommended
"""

import sys
from pathlib import Path

import pandas as pd

from satm_tf.evaluation import mean_interval
from satm_tf.evaluation.report.answer import LABELS
from satm_tf.evaluation.report.figures import ladder

SHOWN = ("clean", "unseen", "defended", "twin", "start", "queries", "white_box")

points = pd.read_csv(sys.argv[1])
rows = {}
for each in sys.argv[2:]:
    scheme, _, name = each.partition("=")
    seeds = points[points.scheme == scheme]
    row: dict[tuple[str, str], float] = {}
    for column in (column for column in SHOWN if column in points):
        mean = float(seeds[column].mean())
        # Of two seeds Student's interval says nothing.
        low, high = mean_interval(seeds[column].tolist()) if len(seeds) > 2 else (mean, mean)
        row |= {(column, "accuracy"): mean, (column, "low"): max(low, 0.0), (column, "high"): min(high, 1.0)}
    rows[name or scheme] = row
table = pd.DataFrame.from_dict(rows, orient="index")
table.columns = pd.MultiIndex.from_tuples(table.columns, names=["rung", "value"])
path = Path(__file__).with_suffix(".png")
ladder(table, LABELS, path, "")
path.with_suffix(".csv").unlink()
