"""Transfer matrix and the checks that go with it."""

from satm_tf.evaluation.checks import label_leaking
from satm_tf.evaluation.predictions import Predictions
from satm_tf.evaluation.tables import robustness_table
from satm_tf.evaluation.transfer import measure, transfer_matrix

__all__ = ["Predictions", "label_leaking", "measure", "robustness_table", "transfer_matrix"]
