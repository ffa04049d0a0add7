"""From the frames of an evaluation to one page that needs nothing beside it."""

from satm_tf.evaluation.report.page import write_report

__all__ = ["write_report"]
