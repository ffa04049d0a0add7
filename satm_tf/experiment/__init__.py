"""A configuration in, a run folder out: fine-tune, co-train, evaluate, export."""

from satm_tf.experiment.config import Config, from_arguments
from satm_tf.experiment.stages import check, run, train

__all__ = ["Config", "check", "from_arguments", "run", "train"]
