"""A configuration in, a run folder out: fine-tune, co-train, evaluate, export."""

from satm_tf.experiment.config import Config, from_arguments
from satm_tf.experiment.run_folder import RunFolder, Stage
from satm_tf.experiment.running import check, run, train

__all__ = ["Config", "RunFolder", "Stage", "check", "from_arguments", "run", "train"]
