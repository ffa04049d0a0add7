"""Co-training, its schemes, domain adaptation, callbacks and replicas."""

from satm_tf.training.callbacks import Pictures, Progress
from satm_tf.training.checkpoint import Checkpoint, Interrupted
from satm_tf.training.co_training import CoTraining
from satm_tf.training.distribution import STRATEGIES, devices_for, get_strategy, is_chief, wait_for_all
from satm_tf.training.domain import (
    DomainAdaptation,
    DomainAdversarial,
    DomainDiscriminative,
    DomainHead,
    UnifiedEmbedding,
)
from satm_tf.training.epsilon import EpsilonSchedule, RampedEpsilon, UniformEpsilon
from satm_tf.training.losses import ClassificationLoss, balanced_class_weights
from satm_tf.training.precision import PRECISIONS, resolve_precision
from satm_tf.training.robust_validation import RobustValidation
from satm_tf.training.scheme import SCHEMES, Scheme
from satm_tf.training.sources import resolve_sources

__all__ = [
    "PRECISIONS",
    "SCHEMES",
    "STRATEGIES",
    "Checkpoint",
    "ClassificationLoss",
    "CoTraining",
    "DomainAdaptation",
    "DomainAdversarial",
    "DomainDiscriminative",
    "DomainHead",
    "EpsilonSchedule",
    "Interrupted",
    "Pictures",
    "Progress",
    "RampedEpsilon",
    "RobustValidation",
    "Scheme",
    "UnifiedEmbedding",
    "UniformEpsilon",
    "balanced_class_weights",
    "devices_for",
    "get_strategy",
    "is_chief",
    "resolve_precision",
    "resolve_sources",
    "wait_for_all",
]
