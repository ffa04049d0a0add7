"""Is it masking? Probes of a model, and verdicts on what they found."""

from satm_tf.evaluation.masking.probes import EFFORT, gradient_reaches, loss_surface, masking_checks

__all__ = ["EFFORT", "gradient_reaches", "loss_surface", "masking_checks"]
