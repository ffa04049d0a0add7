"""Transfer matrix and the checks that go with it."""

from satm_tf.evaluation.checks import label_leaking
from satm_tf.evaluation.tables import robustness_table
from satm_tf.evaluation.transfer import transfer_matrix

__all__ = ["label_leaking", "robustness_table", "transfer_matrix"]
