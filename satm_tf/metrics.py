"""Confusion matrix, accuracy and one-off accuracy, as functions and as Keras metrics."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Relative to chance: a network that has learnt its task is better than this.
_BETTER_THAN_CHANCE = 1.1


def confusion_matrix(labels: Any, predictions: Any, num_classes: int) -> np.ndarray:
    """Counts how many images of class `c` were classified as class `k`.

    Args:
        labels: Integers `[images]` in `[0, num_classes)`.
        predictions: Integers `[images]` in `[0, num_classes)`, the classes predicted.
        num_classes: Number of classes.

    Returns:
        int64 `[num_classes, num_classes]`; the row is the true class, the column the predicted one.

    Raises:
        ValueError: If the two differ in length, or hold a class outside the range.

    Example:
        >>> confusion_matrix([0, 1, 1], [0, 1, 0], num_classes=2).tolist()
        [[1, 0], [1, 1]]
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise ValueError(
            f"labels and predictions must be vectors of the same length. Received shapes: {labels.shape} and "
            f"{predictions.shape}"
        )
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.size and not (values.min() >= 0 and values.max() < num_classes):
            raise ValueError(
                f"{name} must lie in [0, {num_classes}). Received values from {values.min()} to {values.max()}"
            )
    cells = num_classes * labels.astype(np.int64) + predictions.astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(matrix: np.ndarray) -> float:
    """The share of images on the main diagonal of a confusion matrix; NaN when it is empty.

    Example:
        >>> accuracy(np.array([[3, 1], [0, 4]]))
        0.875
    """
    return _share(matrix, np.trace(matrix))


def one_off_accuracy(matrix: np.ndarray) -> float:
    """The share of images on the main diagonal of a confusion matrix and its two neighbours; NaN when it is empty.

    It is meaningful only if the classes are ordered, as age groups are.

    Example:
        >>> one_off_accuracy(np.array([[2, 1, 1], [0, 0, 0], [0, 0, 0]]))
        0.75

    Source:
        Eq. 4 of Liao, "Simultaneous Adversarial Training - Learn from Others' Mistakes".
    """
    return _share(matrix, sum(np.trace(matrix, offset) for offset in (-1, 0, 1)))


def at_chance(accuracy: float, num_classes: int) -> bool:
    """Whether an accuracy exceeds that of guessing, 1 / classes, by no more than a tenth of it.

    Args:
        accuracy: A share in [0, 1].
        num_classes: Number of classes.

    Example:
        >>> at_chance(0.27, 4), at_chance(0.28, 4)
        (True, False)
    """
    return accuracy <= _BETTER_THAN_CHANCE / num_classes


def _share(matrix: np.ndarray, hits: int) -> float:
    return float(hits / matrix.sum()) if matrix.sum() else float("nan")


def _within_one(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    predicted = tf.argmax(y_pred, axis=-1, output_type=tf.int32)
    return tf.cast(tf.abs(predicted - tf.cast(y_true, tf.int32)) <= 1, tf.float32)


@keras.saving.register_keras_serializable(package="satm_tf")
class OneOffAccuracy(keras.metrics.MeanMetricWrapper):
    """The share of images put into their class or a neighbouring one, from integer labels `[batch]` and logits.

    Example:
        >>> metric = OneOffAccuracy()
        >>> metric.update_state([0, 0], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> float(metric.result())
        0.5

    Source:
        Eq. 4 of Liao, "Simultaneous Adversarial Training - Learn from Others' Mistakes".
    """

    def __init__(self, name: str = "one_off_accuracy", dtype: Any = None):
        super().__init__(fn=_within_one, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}
