"""Layers that Keras lacks."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@tf.custom_gradient
def reverse_gradient(inputs: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """The identity, whose gradient is the upstream gradient times `-strength`.

    Args:
        inputs: Float tensor of any shape.
        strength: Float scalar, lambda in Ganin et al. It receives no gradient.

    Returns:
        A tensor equal to `inputs`.

    Source:
        Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016, Eq. 17 and 18.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return -tf.cast(strength, upstream.dtype) * upstream, tf.zeros_like(strength)

    return tf.identity(inputs), gradient


@keras.saving.register_keras_serializable(package="satm_tf")
class GradientReversal(keras.layers.Layer):
    """Passes its input on unchanged and sends the gradient back negated and scaled.

    The layers after it learn to distinguish two domains; the layers before it learn, from the same loss, to make them
    indistinguishable.

    Args:
        strength: Float, lambda in Ganin et al. Non-negative; 0 stops the gradient. A call can override it, for example
            with the value of a schedule.

    Raises:
        ValueError: If `strength` is negative.

    Example:
        >>> layer = GradientReversal(strength=0.5)
        >>> x = tf.Variable([1.0, 2.0])
        >>> with tf.GradientTape() as tape:
        ...     y = tf.reduce_sum(3.0 * layer(x))
        >>> tape.gradient(y, x).numpy().tolist()
        [-1.5, -1.5]

    Source:
        Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016.
    """

    def __init__(self, strength: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        if strength < 0:
            raise ValueError(f"strength must be non-negative: the layer itself reverses the sign. Received: {strength}")
        self.strength = strength

    def call(self, inputs: tf.Tensor, strength: tf.Tensor | float | None = None) -> tf.Tensor:
        strength = self.strength if strength is None else strength
        return reverse_gradient(inputs, tf.convert_to_tensor(strength, tf.float32))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strength": self.strength}
