"""What every detector has in common: what it looks at, how it is fitted, its threshold, and how it is saved."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from satm_tf.configurable import Configurable, serialize
from satm_tf.models import ImageClassifier

_BATCH = 128
# Fewer than these teach no detector anything.
_LEAST = 8


class Seen(NamedTuple):
    """What a detector may look at, of a batch of images: float32 tensors or arrays."""

    images: Any  # [batch, height, width, 3] in [0, 1]
    features: Any  # [batch, feature_size], of the network
    logits: Any  # [batch, classes]
    classify: Callable[[tf.Tensor], tf.Tensor]  # takes features to logits
    null: Any = None  # [batch], the log-odds of the network's null class, if it has one


def look(network: ImageClassifier, images: tf.Tensor) -> Seen:
    """What a network makes of a batch of images, in inference mode."""
    features = network.features(images, training=False)
    logits, null = network.answers(features, training=False)
    return Seen(images, features, logits, lambda some: network.classify(some, training=False), null)


def in_batches(function: Callable[[tf.Tensor], tf.Tensor], images: np.ndarray) -> np.ndarray:
    """A function of image batches, on all images of an array."""
    # Traced here and not by a call, of which TensorFlow says that there are too many.
    specification = tf.TensorSpec([None, *images.shape[1:]], tf.float32)
    compiled = tf.function(function, autograph=False).get_concrete_function(specification)
    starts = range(0, len(images), _BATCH)
    return np.concatenate([compiled(tf.constant(images[start : start + _BATCH])) for start in starts])


def weights_digest(network: keras.Model) -> str:
    """The SHA-256 of a network's weights, by which a detector knows the network that it was fitted to."""
    digest = hashlib.sha256()
    for weight in network.weights:
        digest.update(np.asarray(weight).tobytes())
    return digest.hexdigest()


def scikit_learn(module: str) -> Any:
    """A module of scikit-learn by name, such as "svm": it fits detectors; they answer without it."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(
            f'Detectors are fitted and measured with scikit-learn: pip install "satm_tf[detectors]". Received: {error}'
        ) from error


@dataclass(frozen=True, kw_only=True)
class Detector(Configurable, kind="detector"):
    """A way of telling adversarial from clean images, as an immutable configuration; `fit` gives what answers.

    A subclass implements `learn`, in NumPy and scikit-learn, and `score`, in TensorFlow, so that the score is exported
    and has a gradient. `class Mine(Detector, name="mine")` makes it available to `get`.

    Example:
        >>> detector = get("principal_components").fit(network, clean, adversarial, validation=validation)
        >>> detector.score(network, images).shape
        TensorShape([32])
    """

    def fit(
        self,
        network: ImageClassifier,
        clean: np.ndarray,
        adversarial: np.ndarray,
        *,
        validation: np.ndarray,
        rejected: float = 0.05,
        seed: int = 0,
    ) -> FittedDetector:
        """Fits to a network, and sets the threshold.

        Args:
            network: The classifier that the detector guards; it stays as it is.
            clean: Training images, float32 `[images, *network.image_shape]` in [0, 1].
            adversarial: Adversarial examples of training images, in the same form.
            validation: Other clean images, for the threshold.
            rejected: The share of the validation images that may lie above the threshold, in [0, 1).
            seed: The seed of all random numbers.

        Raises:
            ValueError: If an array is too small, of another shape or outside [0, 1], or the scores are not finite.
            ImportError: If scikit-learn is missing.
        """
        if not isinstance(network, ImageClassifier):
            raise ValueError(
                "A detector looks at the features of an ImageClassifier; take one from a Keras model with "
                f"ImageClassifier.from_keras. Received: {type(network).__name__}"
            )
        if not 0 <= rejected < 1:
            raise ValueError(f"rejected must be a share in [0, 1). Received: rejected={rejected}")
        given = {"clean": (clean, _LEAST), "adversarial": (adversarial, _LEAST), "validation": (validation, 1)}
        images = {name: _checked(name, values, network, least) for name, (values, least) in given.items()}
        clean_seen, adversarial_seen = (_all_seen(network, images[name]) for name in ("clean", "adversarial"))
        state = self.learn(clean_seen, adversarial_seen, seed)
        state = {name: np.asarray(value, np.float32) for name, value in state.items()}
        shapes = {name: value.shape for name, value in state.items()}
        fitted = FittedDetector(self, shapes, fitted_to=weights_digest(network))
        for name, value in state.items():
            fitted.state[name].assign(value)
        fitted.set_threshold(network, images["validation"], rejected)
        return fitted

    # Not abstract methods, as Attack.perturb is none.
    def learn(self, clean: Seen, adversarial: Seen, seed: int) -> dict[str, np.ndarray]:
        """All that the score needs to know, by name, from what was seen of the images, as NumPy arrays."""
        raise NotImplementedError(f"{type(self).__name__} must define how it is fitted: implement `learn`.")

    def score(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        """How suspicious each image is, float32 `[batch]`: larger is more so. Differentiable by the images."""
        raise NotImplementedError(f"{type(self).__name__} must define its score: implement `score`.")


@keras.saving.register_keras_serializable(package="satm_tf")
class FittedDetector(keras.layers.Layer):
    """A detector that was fitted to a network, as `Detector.fit` gives it.

    All that it knows is in its weights: `keras.saving.save_model(detector, "detector.keras")` keeps it, and an export
    holds it.

    Args:
        detector: The configuration, or its mapping.
        shapes: The shape of each array of its state, by name.
        rates: What was measured of it, for records.
        fitted_to: The `weights_digest` of the network that it was fitted to; None if that is not known.
        **kwargs: `name` and the like, as any Keras layer takes.

    Attributes:
        detector: The configuration.
        threshold: Images with a larger score are suspicious; a scalar variable.
        spread: The standard deviation of the scores of clean images, a scalar variable.
        rates: A mapping of plain values: `clean_rejected`, the share of the images that the threshold was set on which
            lie above it, `clean_images`, their number, and what else was measured.
    """

    def __init__(
        self,
        detector: Detector | Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        rates: Mapping[str, Any] | None = None,
        fitted_to: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**{"name": "detector", "dtype": "float32", "trainable": False, **kwargs})
        self.detector = Detector.get(detector)
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.rates = dict(rates or {})
        self.fitted_to = fitted_to

        def weight(name: str, shape: tuple[int, ...]) -> keras.Variable:
            return self.add_weight(shape=shape, name=name, initializer="zeros", trainable=False)

        self.state = {name: weight(name, shape) for name, shape in self.shapes.items()}
        self.threshold, self.spread = weight("threshold", ()), weight("spread", ())
        self.built = True

    def score(self, network: ImageClassifier, images: tf.Tensor) -> tf.Tensor:
        """How suspicious images are: float32 `[batch]`, larger is more so, differentiable by the images.

        Args:
            network: The classifier that it was fitted to.
            images: float32 `[batch, *network.image_shape]` in [0, 1].
        """
        return self.score_of(look(network, images))

    def score_of(self, seen: Seen) -> tf.Tensor:
        """The same from what the network has made of the images already."""
        state = {name: tf.convert_to_tensor(variable) for name, variable in self.state.items()}
        return tf.cast(self.detector.score(state, seen), tf.float32)

    def excess_of(self, seen: Seen) -> tf.Tensor:
        """By how much the score exceeds the threshold, in spreads of clean images: positive where suspicious."""
        return (self.score_of(seen) - self.threshold) / self.spread

    def set_threshold(self, network: ImageClassifier, images: np.ndarray, rejected: float = 0.05) -> None:
        """Puts the threshold where at most a share of clean images lies above it: of 100 images and 5 %, five.

        Args:
            network: The classifier that it was fitted to.
            images: Clean images that it was not fitted on.
            rejected: The share, in [0, 1).

        Raises:
            ValueError: If a score is not finite.
        """
        scores = np.sort(in_batches(lambda batch: self.score(network, batch), images))
        if not np.isfinite(scores).all():
            raise ValueError(
                f"The scores of {self.detector.name!r} must be finite; give it other or more images. "
                f"Received: {np.count_nonzero(~np.isfinite(scores))} others of {len(scores)}"
            )
        # The scale of the score is arbitrary, and nothing is divided by 0 where all clean images have the same one.
        spread = max(float(scores.std()), 1e-6 * max(1.0, float(np.abs(scores).max())))
        # Between two scores, so that rounding rejects no image.
        below = len(scores) - int(rejected * len(scores) + 1e-9)
        threshold = np.append(scores, scores[-1] + spread)[below - 1 : below + 1].mean()
        self.threshold.assign(threshold)
        self.spread.assign(spread)
        self.rates |= {"clean_rejected": float((scores > threshold).mean()), "clean_images": len(scores)}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "detector": serialize(self.detector),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "rates": dict(self.rates),
            "fitted_to": self.fitted_to,
        }


def _checked(name: str, images: Any, network: ImageClassifier, least: int) -> np.ndarray:
    images = np.asarray(images, np.float32)
    if images.shape[1:] != network.image_shape or len(images) < least:
        raise ValueError(
            f"{name} must be at least {least} images of shape {network.image_shape}. Received: shape {images.shape}"
        )
    if not (images >= 0).all() or not (images <= 1).all():
        raise ValueError(f"{name} must lie in [0, 1]. Received values from {images.min():g} to {images.max():g}")
    return images


def _all_seen(network: ImageClassifier, images: np.ndarray) -> Seen:
    features = in_batches(lambda batch: look(network, batch).features, images)
    logits, null = network.answers(tf.constant(features), training=False)
    return Seen(images, features, np.asarray(logits), look(network, images[:1]).classify, null)
