"""Export for TF Serving and to other formats, and clients of a server or an export."""

from satm_tf.serving.answers import ServingError
from satm_tf.serving.client import Client
from satm_tf.serving.comparison import compare
from satm_tf.serving.endpoint import Endpoint
from satm_tf.serving.export import export_saved_model
from satm_tf.serving.formats import convert
from satm_tf.serving.verification import VerificationError

__all__ = ["Client", "Endpoint", "ServingError", "VerificationError", "compare", "convert", "export_saved_model"]
