"""From the frames of an evaluation to one self-contained page."""

from satm_tf.evaluation.report.page import write_report

__all__ = ["write_report"]
