"""Transfer matrix, statistics, tables, and the checks that tell a real defence from an apparent one."""

from satm_tf.evaluation.assessment import Assessment, assess
from satm_tf.evaluation.ladder import compare_ladder, ladder_table
from satm_tf.evaluation.leaking import label_leaking
from satm_tf.evaluation.masking import gradient_reaches, loss_surface, masking_checks
from satm_tf.evaluation.predictions import Predictions
from satm_tf.evaluation.statistics import compare_paired, mean_interval, over_repeats, wilson_interval
from satm_tf.evaluation.suite import Suite, read_suite
from satm_tf.evaluation.tables import (
    compare_schemes,
    matrix_table,
    read_results,
    robustness_table,
    strength_table,
    with_uncertainty,
)
from satm_tf.evaluation.transfer import measure, transfer_matrix

__all__ = [
    "Assessment",
    "Predictions",
    "Suite",
    "assess",
    "compare_ladder",
    "compare_paired",
    "compare_schemes",
    "gradient_reaches",
    "label_leaking",
    "ladder_table",
    "loss_surface",
    "masking_checks",
    "matrix_table",
    "mean_interval",
    "measure",
    "over_repeats",
    "read_results",
    "read_suite",
    "robustness_table",
    "strength_table",
    "transfer_matrix",
    "wilson_interval",
    "with_uncertainty",
]
