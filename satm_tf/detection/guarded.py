"""A classifier with its detector as one model, for attackers who know both, and what the rejections cost and gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.detection.base import FittedDetector, in_batches, look, scikit_learn
from satm_tf.models import ImageClassifier


@keras.saving.register_keras_serializable(package="satm_tf")
class Guarded(keras.Model):
    """A classifier that rejects what its detector finds suspicious: one more logit, the last, means "rejected".

    The logits are the network's, less the largest of them, and the excess of the detector's score over its threshold.
    So the largest is the last exactly where the image is suspicious, and the class otherwise; both parts have their
    gradient. `PGD(loss="evading_margin")` on it attacks classifier and detector together.

    Args:
        network: The classifier.
        detector: A detector that was fitted to it.
        **kwargs: `name` and the like, as any Keras model takes.

    Attributes:
        num_classes: Number of logits: the network's and one.

    Example:
        >>> guarded = Guarded(network, detector)
        >>> adversarial = attacks.PGD(epsilon=8 / 255, loss="evading_margin").craft(guarded, images, labels)

    Source:
        Carlini and Wagner, "Adversarial Examples Are Not Easily Detected: Bypassing Ten Detection Methods", AISec 2017.
        There the last logit is the largest one times one more than the detector's, which must then be positive.
    """

    gives_logits = True

    def __init__(self, network: ImageClassifier, detector: FittedDetector, **kwargs: Any):
        super().__init__(autocast=False, **{"name": f"guarded_{network.name}", **kwargs})
        self.network = network
        self.detector = detector
        self.image_shape = network.image_shape
        self.num_classes = network.num_classes + 1
        self.built = True

    def call(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The float32 logits `[batch, num_classes]` of images `[batch, height, width, 3]`, always in inference mode."""
        seen = look(self.network, images)
        # The softmax is the same, and no rounding stands between score and threshold.
        classes = seen.logits - tf.reduce_max(seen.logits, -1, keepdims=True)
        return tf.concat([classes, self.detector.excess_of(seen)[:, None]], -1)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {**super().get_config(), "network": serialize(self.network), "detector": serialize(self.detector)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Guarded:
        parts = {
            key: keras.saving.deserialize_keras_object(config[key], custom_objects=custom_objects)
            for key in ("network", "detector")
        }
        return cls(**{**config, **parts})


def measure(
    detectors: Mapping[str, FittedDetector],
    network: ImageClassifier,
    images: np.ndarray,
    labels: np.ndarray,
    adversarial: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    """Measures detectors of a network on clean images and on adversarial examples of them.

    Args:
        detectors: By name, each fitted to the network.
        network: The classifier.
        images: Clean images that no detector was fitted on, float32 `[images, *network.image_shape]` in [0, 1].
        labels: Their classes, int `[images]`.
        adversarial: Adversarial examples of them in the same order, by the name of the attack or of the rung. Those of
            an attacker who knows a detector are crafted on `Guarded(network, detector)`, and measure that one alone.

    Returns:
        A tidy frame, a row for each detector and name: `detector`, `attack`, `images`; `auc`, the area under the ROC
        curve of clean against adversarial; `clean_rejected` and `adversarial_rejected`, the shares above the threshold;
        `clean_accuracy`, where a rejected image counts as wrong; and `held`, the share of adversarial images that are
        classified correctly or rejected.

    Raises:
        ValueError: If there are no images, or not as many labels or adversarial examples.
        ImportError: If scikit-learn is missing.

    Example:
        >>> measure({"pca": detector}, network, images, labels, {"pgd": transferred}).set_index("attack").auc
    """
    labels = np.asarray(labels)
    counts = {"labels": len(labels), **{name: len(crafted) for name, crafted in adversarial.items()}}
    if not len(images) or set(counts.values()) != {len(images)}:
        raise ValueError(
            f"There must be a label and an adversarial example for each image. Received: {len(images)} images, and "
            f"{counts}"
        )
    area = scikit_learn("metrics").roc_auc_score
    rows = []
    for name, detector in detectors.items():
        guarded = Guarded(network, detector)
        clean_excess, clean_class = _excess_and_class(guarded, images)
        for attack, crafted in adversarial.items():
            excess, predicted = _excess_and_class(guarded, crafted)
            rows.append(
                {
                    "detector": name,
                    "attack": attack,
                    "images": len(labels),
                    "auc": area(np.repeat([0, 1], len(labels)), np.concatenate([clean_excess, excess])),
                    "clean_rejected": (clean_excess > 0).mean(),
                    "adversarial_rejected": (excess > 0).mean(),
                    "clean_accuracy": (clean_class == labels).mean(),
                    "held": ((predicted == labels) | (excess > 0)).mean(),
                }
            )
    return pd.DataFrame(rows)


def _excess_and_class(guarded: Guarded, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The excess of the scores over the threshold, and the classes, of which the last is "rejected": `[images]`."""
    logits = in_batches(guarded, np.asarray(images, np.float32))
    return logits[:, -1], logits.argmax(-1)
