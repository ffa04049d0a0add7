"""Co-training and domain adaptation."""

from satm_tf.training.callbacks import Progress
from satm_tf.training.co_training import CoTraining
from satm_tf.training.domain import DomainAdversarial, DomainHead
from satm_tf.training.sources import resolve_sources

__all__ = ["CoTraining", "DomainAdversarial", "DomainHead", "Progress", "resolve_sources"]
