"""Export for TF Serving."""

from satm_tf.serving.export import export_saved_model

__all__ = ["export_saved_model"]
