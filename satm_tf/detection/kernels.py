"""Detectors of how near features lie to known ones: kernel density with dropout uncertainty, and an RBF machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from satm_tf.detection.base import Detector, Seen, scikit_learn
from satm_tf.detection.features import labelled

# The logarithm of no weight at all, finite so that its gradient is a number.
_NOTHING = -1e9
# What bandwidths are tried, in units of the root mean square distance of features from their mean.
_BANDWIDTHS = np.geomspace(0.02, 2.0, 12)


@dataclass(frozen=True, kw_only=True)
class DensityUncertainty(Detector, name="density_uncertainty"):
    """Kernel density of features within the predicted class and dropout uncertainty, in a logistic regression.

    The uncertainty is that of the probabilities under fixed random dropout masks on the features, which are drawn once,
    when it is fitted: the score is the same at every call. In the source every dropout layer of the network draws
    masks anew. Half of the clean images make the density, and the regression learns from the others: a point's own
    kernel would make its density too high. A class that no clean image is taken for has the density of all.

    Attributes:
        points: The most clean images that the density is made of; the export holds their features.
        bandwidth: The standard deviation of the Gaussian kernel, in units of features; None chooses by
            cross-validation of the likelihood.
        masks: Number of dropout masks.
        dropout: Share of the features that each mask leaves out, in (0, 1).

    Raises:
        ValueError: If a number is out of range.

    Source:
        Feinman et al., "Detecting Adversarial Samples from Artifacts", 2017.
    """

    points: int = 1000
    bandwidth: float | None = None
    masks: int = 30
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.points < 1 or self.masks < 1 or not 0 < self.dropout < 1:
            raise ValueError(f"points and masks must be positive, and dropout in (0, 1). Received: {self}")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise ValueError(f"bandwidth must be positive. Received: bandwidth={self.bandwidth}")

    def learn(self, clean: Seen, adversarial: Seen, seed: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        order = random.permutation(len(clean.features))
        chosen, others = np.split(order, [min(self.points, len(order) // 2)])
        points, predicted = clean.features[chosen], clean.logits[chosen].argmax(-1)
        classes = np.arange(clean.logits.shape[-1])
        member = predicted == classes[:, None]
        member[~member.any(-1)] = True
        share = np.log(member.sum(-1, keepdims=True))
        masks = random.random((self.masks, points.shape[-1])) >= self.dropout
        state = {
            "points": points,
            "log_weights": np.where(member, -share, _NOTHING),
            "bandwidth": np.array(self.bandwidth or _bandwidth(points, seed)),
            "masks": masks / (1 - self.dropout),
        }
        known = constants(state)
        rest = Seen(clean.images[others], clean.features[others], clean.logits[others], clean.classify)
        measured, truth = labelled(*(self.measure(known, seen).numpy() for seen in (rest, adversarial)))
        mean, scale = measured.mean(0), measured.std(0)
        scale[scale == 0] = 1
        regression = scikit_learn("linear_model").LogisticRegression(class_weight="balanced")
        regression.fit((measured - mean) / scale, truth)
        weights = regression.coef_[0] / scale
        return {**state, "weights": weights, "bias": regression.intercept_[0] - mean @ weights}

    def measure(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        """The logarithm of the density, and the uncertainty, float32 `[batch, 2]`."""
        return tf.stack([self.log_density(state, seen), self.uncertainty(state, seen)], -1)

    def log_density(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        """The logarithm of the density of the features within the predicted class, float32 `[batch]`."""
        features = tf.convert_to_tensor(seen.features)
        weights = tf.gather(state["log_weights"], tf.argmax(seen.logits, -1))
        variance = tf.square(state["bandwidth"])
        kernels = weights - squared_distances(features, state["points"]) / (2 * variance)
        return tf.reduce_logsumexp(kernels, -1) - features.shape[-1] / 2 * tf.math.log(2 * np.pi * variance)

    def uncertainty(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        """The variance of the probabilities over the masks, summed over the classes, float32 `[batch]`."""
        masked = seen.features * state["masks"][:, None]
        logits = seen.classify(tf.reshape(masked, [-1, masked.shape[-1]]))
        probabilities = tf.reshape(tf.nn.softmax(logits), [self.masks, -1, logits.shape[-1]])
        return tf.reduce_sum(tf.math.reduce_variance(probabilities, 0), -1)

    def score(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        return tf.linalg.matvec(self.measure(state, seen), state["weights"]) + state["bias"]


@dataclass(frozen=True, kw_only=True)
class QuantisedRBF(Detector, name="quantised_rbf"):
    """A support vector machine with radial basis functions on quantised features; its score is the decision function.

    Each feature becomes one of a few levels, which split its clean values into equal shares. A step has no gradient, so
    backwards it is the sigmoid around it (a straight-through estimator): otherwise every attack with gradients would
    seem to fail, and the detector to withstand it.

    Attributes:
        levels: Number of levels, at least 2.
        penalty: C, the weight of errors on the images that it is fitted on.
        softness: Width of the sigmoid, in units of a feature's standard deviation.

    Raises:
        ValueError: If a number is out of range.

    Source:
        Lu et al., "SafetyNet: Detecting and Rejecting Adversarial Examples Robustly", ICCV 2017; there on the
        activations of several late layers. The estimator is Bengio et al., "Estimating or Propagating Gradients Through
        Stochastic Neurons for Conditional Computation", 2013.
    """

    levels: int = 4
    penalty: float = 1.0
    softness: float = 0.25

    def __post_init__(self) -> None:
        if self.levels < 2 or self.penalty <= 0 or self.softness <= 0:
            raise ValueError(f"levels must be at least 2, and penalty and softness positive. Received: {self}")

    def learn(self, clean: Seen, adversarial: Seen, seed: int) -> dict[str, np.ndarray]:
        inner = np.linspace(0, 1, self.levels + 1)[1:-1]
        width = self.softness * clean.features.std(0)
        state = {
            # Between two values, so that no image stands on a step.
            "cuts": np.quantile(clean.features, inner, axis=0, method="midpoint"),
            "width": np.maximum(width, 1e-3 * width.max() + 1e-9),
        }
        codes, truth = labelled(*(self.codes(constants(state), seen).numpy() for seen in (clean, adversarial)))
        gamma = 1 / (codes.shape[-1] * max(codes.var(), 1e-9))
        machine = scikit_learn("svm").SVC(C=self.penalty, gamma=gamma, class_weight="balanced").fit(codes, truth)
        return {
            **state,
            "vectors": machine.support_vectors_,
            "coefficients": machine.dual_coef_[0],
            "intercept": machine.intercept_[0],
            "gamma": np.array(gamma),
        }

    def codes(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        """The levels of the features, from 0 to 1, float32 `[batch, feature_size]`."""
        above = tf.convert_to_tensor(seen.features)[:, None] - state["cuts"]
        soft = tf.sigmoid(above / state["width"])
        # Zero first, so that the value is the step to the bit, and the gradient the sigmoid's.
        return tf.reduce_mean(tf.cast(above > 0, tf.float32) + (soft - tf.stop_gradient(soft)), 1)

    def score(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        kernels = tf.exp(-state["gamma"] * squared_distances(self.codes(state, seen), state["vectors"]))
        return tf.linalg.matvec(kernels, state["coefficients"]) + state["intercept"]


def constants(state: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
    """A detector's state as its score takes it."""
    return {name: tf.constant(value, tf.float32) for name, value in state.items()}


def squared_distances(points: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Between each of `[batch, size]` and each of `[count, size]`: float32 `[batch, count]`."""
    # About their mean, where less is lost to rounding than about zero.
    centre = tf.reduce_mean(others, 0)
    points, others = points - centre, others - centre
    lengths = tf.reduce_sum(tf.square(points), -1)[:, None] + tf.reduce_sum(tf.square(others), -1)
    return tf.maximum(lengths - 2 * tf.matmul(points, others, transpose_b=True), 0.0)


def _bandwidth(points: np.ndarray, seed: int) -> float:
    selection = scikit_learn("model_selection")
    density = scikit_learn("neighbors").KernelDensity()
    unit = max(float(np.sqrt(points.var(0).sum())), 1e-6)
    folds = selection.KFold(min(3, len(points)), shuffle=True, random_state=seed)
    search = selection.GridSearchCV(density, {"bandwidth": unit * _BANDWIDTHS}, cv=folds).fit(points)
    return float(search.best_params_["bandwidth"])
