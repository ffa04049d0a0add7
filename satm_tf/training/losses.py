"""The classification loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ClassificationLoss:
    """Cross-entropy with a target for each class: the class itself, smoothed, or spread over its neighbours.

    Attributes:
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
        class_weights: A non-negative weight for each class; None weights all equally. The loss of a batch is divided by
            the number of images, not by the sum of the weights, so weights should be 1 on average over the images.
        order_temperature: For classes in a meaningful order, such as age groups: the target of class `c` is the softmax
            of `-|c - k| / order_temperature` over the classes `k`, so that a neighbouring class costs less than a
            distant one. Must be positive; the smaller, the closer to plain cross-entropy. None is plain cross-entropy.

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> ClassificationLoss(label_smoothing=0.1, class_weights=[0.5, 1.5])
        >>> ClassificationLoss(order_temperature=0.5).targets(3).round(2).tolist()
        [[0.87, 0.12, 0.02], [0.11, 0.79, 0.11], [0.02, 0.12, 0.87]]

    Source:
        Label smoothing: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, Section 7. Ordered classes:
        Diaz and Marathe, "Soft Labels for Ordinal Regression" (SORD), CVPR 2019, with the absolute difference.
    """

    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    order_temperature: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1). Received: {self.label_smoothing}")
        if self.class_weights is not None and not (
            min(self.class_weights, default=-1) >= 0 and np.isfinite(self.class_weights).all()
        ):
            raise ValueError(f"class_weights must be finite and non-negative. Received: {self.class_weights}")
        if self.order_temperature is not None and not self.order_temperature > 0:
            raise ValueError(f"order_temperature must be positive. Received: {self.order_temperature}")

    def targets(self, num_classes: int) -> NDArray[np.float64]:
        """The target distribution of each class, `[classes, classes]`, rows summing to 1."""
        targets = np.eye(num_classes)
        if self.order_temperature is not None:
            distance = np.abs(np.subtract.outer(np.arange(num_classes), np.arange(num_classes)))
            targets = np.exp(-distance / self.order_temperature)
            targets /= targets.sum(axis=1, keepdims=True)
        return (1 - self.label_smoothing) * targets + self.label_smoothing / num_classes

    def __call__(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """The loss `[...]` of each answer: integer labels `[...]`, float32 logits `[..., classes]`.

        Raises:
            ValueError: If the number of class weights is not that of the classes.
        """
        num_classes = logits.shape[-1]
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ValueError(
                f"There must be a weight for each of {num_classes} classes. Received: {list(self.class_weights)}"
            )
        if self.label_smoothing == 0 and self.order_temperature is None:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        else:
            targets = tf.constant(self.targets(num_classes), tf.float32)
            losses = tf.nn.softmax_cross_entropy_with_logits(tf.gather(targets, labels), logits)
        if self.class_weights is None:
            return losses
        return losses * tf.gather(tf.constant(self.class_weights, tf.float32), labels)


def balanced_class_weights(counts: Sequence[int]) -> list[float]:
    """Weights that make every class count equally, 1 on average over the images; a class without images weighs 1.

    Example:
        >>> balanced_class_weights([30, 10])
        [0.6666666666666666, 2.0]
    """
    present = [count for count in counts if count]
    return [sum(present) / (len(present) * count) if count else 1.0 for count in counts]
