"""Batch normalisation in one kernel."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

# TensorFlow's kernel silently takes a smaller epsilon for this one.
_SMALLEST_EPSILON = 1.001e-5


@keras.saving.register_keras_serializable(package="satm_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalisation, weights and results, with TensorFlow's fused kernel in training.

    Keras 3 casts to float32, takes the moments and normalises one operation after the other, which in mixed precision
    costs more than the convolutions between (`benchmarks/backbones.py` has the figures). In inference, and wherever the
    kernel does not apply (inputs that are not images, masks, synchronised or renormalised statistics, channels first),
    this is Keras's layer to the bit.

    Example:
        >>> layer = BatchNormalization(epsilon=1e-4)
        >>> layer(tf.random.normal([2, 8, 8, 3]), training=True).shape
        TensorShape([2, 8, 8, 3])
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        applies = (
            len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and mask is None
            and not (self.synchronized or getattr(self, "renorm", False))  # older Keras has no renorm
            and self.epsilon >= _SMALLEST_EPSILON
        )
        if not (training and self.trainable and applies):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            tf.convert_to_tensor(self.gamma) if self.scale else tf.ones_like(self.moving_mean),
            tf.convert_to_tensor(self.beta) if self.center else tf.zeros_like(self.moving_mean),
            epsilon=self.epsilon,
            is_training=True,
        )
        # The kernel gives the unbiased variance for the moving one; Keras keeps the biased.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance * (count - 1.0) / count)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs


def fuse_batch_norm(model: keras.Model) -> keras.Model:
    """A functional model with this module's `BatchNormalization` instead of Keras's, fresh, same names and order.

    Args:
        model: Model of another's making, such as one of `keras.applications`, before its weights are loaded.
    """

    def replace(layer: keras.layers.Layer) -> Any:
        kind = BatchNormalization if type(layer) is keras.layers.BatchNormalization else type(layer)
        return kind.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=replace)
