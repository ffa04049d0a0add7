"""A classifier with its detector as one model, which an attacker who knows both can attack."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from satm_tf.detection.base import FittedDetector, look
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
