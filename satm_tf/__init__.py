"""Simultaneous adversarial training: networks that learn from each other's adversarial examples."""

from __future__ import annotations

import contextlib
import os

from satm_tf import start_up

with start_up.quieted() if start_up.is_command() else contextlib.nullcontext():
    try:
        import keras

        _backend = keras.backend.backend()
    except (ImportError, ValueError) as _error:
        _backend = os.environ.get("KERAS_BACKEND") or getattr(_error, "name", None) or str(_error)
        if _backend in ("keras", "tensorflow"):
            raise
    if _backend == "tensorflow" and start_up.is_command() and not start_up.has_gpu():
        import tensorflow as _tensorflow

        _tensorflow.config.list_physical_devices()  # TensorFlow searches for GPUs, and reports it, once.
if _backend != "tensorflow":
    raise ImportError(
        "satm_tf runs on Keras's TensorFlow backend. Set the environment variable KERAS_BACKEND=tensorflow before "
        'Keras is imported, or put "backend": "tensorflow" into ~/.keras/keras.json (then restart Python). '
        f"Received: the backend {_backend!r}"
    )

from satm_tf import attacks, data, detection, evaluation, layers, metrics, models, serving, training
from satm_tf.evaluation import assess
from satm_tf.harden import Hardened, harden
from satm_tf.models import ImageClassifier, available_backbones
from satm_tf.training import Checkpoint, CoTraining, DomainAdversarial, Pictures, Progress, RobustValidation

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CoTraining",
    "DomainAdversarial",
    "Hardened",
    "ImageClassifier",
    "Pictures",
    "Progress",
    "RobustValidation",
    "assess",
    "attacks",
    "available_backbones",
    "data",
    "detection",
    "evaluation",
    "harden",
    "layers",
    "metrics",
    "models",
    "serving",
    "training",
]
