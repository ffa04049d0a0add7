"""The losses that attacks ascend to leave a class, or descend to reach it.

Each function takes int32 classes `[batch]` and float32 logits `[..., batch, classes]`, and gives the loss
`[..., batch]` of each image. Leading axes hold several answers for the same images, such as an ensemble's.
"""

from __future__ import annotations

import tensorflow as tf


def cross_entropy(classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The negative logarithm of the class's probability."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(_for_each(classes, logits), logits)


def margin(classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The strongest other logit minus that of the class: positive if the image is misclassified.

    Source:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, f_6 without its bound.
    """
    own, other = own_and_other(classes, logits)
    return other - own


def evading_margin(classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The margin of a model whose last logit means "rejected": positive where it answers wrongly and does not reject.

    It is the strongest logit of the other classes, less the larger of the class's own and the last. So an attack that
    ascends it fools classifier and detector together, where the margin would be content with a rejection.

    Raises:
        ValueError: If there are fewer than three logits: two classes and the rejection.

    Source:
        Carlini and Wagner, "Adversarial Examples Are Not Easily Detected", AISec 2017, Section 2.
    """
    if logits.shape[-1] is not None and logits.shape[-1] < 3:
        raise ValueError(
            f"evading_margin needs a model with two classes or more and a last logit that rejects. Received: "
            f"{logits.shape[-1]} logits"
        )
    own, other = own_and_other(classes, logits[..., :-1])
    return other - tf.maximum(own, logits[..., -1])


def difference_of_logits_ratio(classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The margin over the distance from the first to the third logit, which removes the scale of the logits.

    With two classes, where there is no third logit, the distance is to the second.

    Source:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness", ICML 2020, Eq. 6.
    """
    ordered = tf.math.top_k(logits, min(3, logits.shape[-1])).values
    return tf.math.divide_no_nan(margin(classes, logits), ordered[..., 0] - ordered[..., -1])


def targeted_ratio(classes: tf.Tensor, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The target's logit minus the class's, over the distance from the first to the mean of the third and fourth logit.

    With fewer than four classes, the distance is to the mean of those after the second, or to the second.

    Source:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness", ICML 2020, Eq. 7.
    """
    ordered = tf.math.top_k(logits, min(4, logits.shape[-1])).values
    far = tf.reduce_mean(ordered[..., min(2, logits.shape[-1] - 1) :], axis=-1)
    gap = own_and_other(targets, logits)[0] - own_and_other(classes, logits)[0]
    return tf.math.divide_no_nan(gap, ordered[..., 0] - far)


def hot_cold(classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """A loss whose gradient is the strongest other logit at that class, and minus the class's logit at the class.

    Source:
        Rozsa et al., "Adversarial Diversity and Hard Positive Generation", CVPR Workshops 2016.
    """
    own, other = own_and_other(classes, logits)
    return tf.stop_gradient(tf.abs(other)) * other - tf.stop_gradient(tf.abs(own)) * own


def divergence(reference: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The Kullback-Leibler divergence `KL(p || q)` `[...]` of the softmaxes of reference logits (p) and logits (q)."""
    p, log_p = tf.nn.softmax(reference), tf.nn.log_softmax(reference)
    return tf.reduce_sum(p * (log_p - tf.nn.log_softmax(logits)), axis=-1)


def own_and_other(classes: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The logit of the class and the strongest of the others, each `[..., batch]`."""
    mask = tf.one_hot(_for_each(classes, logits), tf.shape(logits)[-1], on_value=True, off_value=False)
    own = tf.reduce_max(tf.where(mask, logits, -tf.float32.max), axis=-1)
    return own, tf.reduce_max(tf.where(mask, -tf.float32.max, logits), axis=-1)


def strongest_others(classes: tf.Tensor, logits: tf.Tensor, count: int) -> tf.Tensor:
    """The other classes with the largest logits, from logits `[batch, classes]`: int32 `[batch, count]` or fewer."""
    own = tf.one_hot(classes, logits.shape[-1], on_value=float("inf"), off_value=0.0)
    return tf.math.top_k(logits - own, min(count, logits.shape[-1] - 1)).indices


def _for_each(classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.broadcast_to(classes, tf.shape(logits)[:-1])


EVADING = "evading_margin"
LOSSES = {
    "cross_entropy": cross_entropy,
    "dlr": difference_of_logits_ratio,
    "margin": margin,
    "hot_cold": hot_cold,
    EVADING: evading_margin,
}
