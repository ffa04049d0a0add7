"""Detectors without known points: a small classifier, principal components, and the network's own null class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from satm_tf.configurable import look_up
from satm_tf.detection.base import Detector, Seen, scikit_learn

# Components below this share of the largest variance hold rounding alone, which whitening would magnify.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class FeatureClassifier(Detector, name="feature_classifier"):
    """A small classifier of clean against adversarial, on the network's features; its score is the logit.

    Two fully-connected layers, as the classifier of `DomainAdversarial` has, without the gradient reversal.

    Attributes:
        hidden: Width of the first layer.
        epochs: The most passes over the images; it ends earlier when the loss no longer falls.
        weight_decay: Weight of the L2 penalty.

    Raises:
        ValueError: If a number is out of range.

    Source:
        Metzen et al., "On Detecting Adversarial Perturbations", ICLR 2017; Gong et al., "Adversarial and Clean Data Are
        Not Twins", 2017. Theirs take the feature maps within the network, and the images.
    """

    hidden: int = 256
    epochs: int = 100
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.epochs < 1 or self.weight_decay < 0:
            raise ValueError(f"hidden and epochs must be positive, and weight_decay not negative. Received: {self}")

    def learn(self, clean: Seen, adversarial: Seen, seed: int) -> dict[str, np.ndarray]:
        features, truth = labelled(clean.features, adversarial.features)
        mean, scale = features.mean(0), features.std(0)
        scale[scale == 0] = 1
        network = scikit_learn("neural_network").MLPClassifier(
            (self.hidden,), alpha=self.weight_decay, max_iter=self.epochs, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scikit_learn("exceptions").ConvergenceWarning)  # the epochs are a bound
            network.fit((features - mean) / scale, truth)
        (first, second), (first_bias, second_bias) = network.coefs_, network.intercepts_
        first = first / scale[:, None]
        return {"first": first, "first_bias": first_bias - mean @ first, "second": second, "second_bias": second_bias}

    def score(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        hidden = tf.nn.relu(seen.features @ state["first"] + state["first_bias"])
        return (hidden @ state["second"] + state["second_bias"])[:, 0]


@dataclass(frozen=True, kw_only=True)
class PrincipalComponents(Detector, name="principal_components"):
    """The energy in principal components of low rank, each divided by its variance on clean images.

    Adversarial examples are not used: those that fit the clean images' large components well differ in the small ones.

    Attributes:
        of: "features" or "pixels".
        low_ranked: The share of the components that count, those of the smallest variance, in (0, 1].

    Raises:
        ValueError: If the share is out of range, or `of` is unknown.

    Source:
        Hendrycks and Gimpel, "Early Methods for Detecting Adversarial Images", ICLR Workshops 2017; there of pixels,
        and the variance of the coefficients in place of their mean square.
    """

    of: str = "features"
    low_ranked: float = 0.5

    def __post_init__(self) -> None:
        look_up("part of what is seen", self.of, _PARTS)
        if not 0 < self.low_ranked <= 1:
            raise ValueError(f"low_ranked must be a share in (0, 1]. Received: low_ranked={self.low_ranked}")

    def learn(self, clean: Seen, adversarial: Seen, seed: int) -> dict[str, np.ndarray]:
        values = np.asarray(_PARTS[self.of](clean), np.float64)
        if not values.std(0).any():
            raise ValueError(f"The {self.of} of clean images must differ. Received: all alike")
        found = scikit_learn("decomposition").PCA(svd_solver="full").fit(values)
        kept = found.explained_variance_ > _LEAST_VARIANCE * found.explained_variance_[0]
        count = max(1, round(self.low_ranked * np.count_nonzero(kept)))
        axes, variances = found.components_[kept][-count:], found.explained_variance_[kept][-count:]
        return {"mean": found.mean_, "whitening": axes.T / np.sqrt(variances)}

    def score(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        whitened = (_PARTS[self.of](seen) - state["mean"]) @ state["whitening"]
        return tf.reduce_mean(tf.square(whitened), -1)


@dataclass(frozen=True, kw_only=True)
class NullClass(Detector, name="null_class"):
    """The log-odds of the network's null class, which training taught it; only the threshold is fitted.

    Example:
        >>> trainer = CoTraining({"a": network.with_null_class()}, learns_from="itself", null_share=1.0)
        >>> detector = NullClass().fit(trainer.networks["a"], clean, adversarial, validation=validation)

    Source:
        Hosseini et al., "Blocking Transferability of Adversarial Examples in Black-Box Learning Systems", 2017.
    """

    def learn(self, clean: Seen, adversarial: Seen, seed: int) -> dict[str, np.ndarray]:
        if clean.null is None:
            raise ValueError(
                "This network has no null class; train network.with_null_class() with null_share, or choose another "
                "detector. Received: a network without one"
            )
        return {}

    def score(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        return seen.null


def _flat(images: Any) -> Any:
    return tf.reshape(images, [-1, int(np.prod(images.shape[1:]))])


_PARTS = {"features": lambda seen: seen.features, "pixels": lambda seen: _flat(seen.images)}


def labelled(clean: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All rows, and which of them are adversarial, as 0 and 1."""
    return np.concatenate([clean, adversarial]), np.repeat([0, 1], [len(clean), len(adversarial)])
