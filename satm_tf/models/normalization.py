"""Batch normalisation in one kernel, and re-estimation of its statistics."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf.models.classifier import ImageClassifier

# TensorFlow's kernel silently replaces a smaller epsilon by this one.
_SMALLEST_EPSILON = 1.001e-5


@keras.saving.register_keras_serializable(package="satm_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalisation, weights and results, with TensorFlow's fused kernel in training.

    Keras 3 casts to float32, computes the moments and normalises in separate operations, which in mixed precision cost
    more than the convolutions between (`benchmarks/backbones.py` has the figures). In inference, and wherever the
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
    """A new functional model with this module's `BatchNormalization` instead of Keras's, same names and order.

    The model is one from elsewhere, such as `keras.applications`, before its weights are loaded.
    """

    def replace(layer: keras.layers.Layer) -> Any:
        kind = BatchNormalization if type(layer) is keras.layers.BatchNormalization else type(layer)
        return kind.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=replace)


def restore_batch_norm(network: ImageClassifier, images: np.ndarray, *, batch_size: int = 32) -> None:
    """Sets batch normalisation to the statistics of some images, without changing what the network computes.

    Published weights are often folded for inference: moving means of 0 and variances of 1, with the real statistics
    multiplied into the layers around. In training such a layer normalises by its batch instead, which is a different
    function from the first step on. This function measures each layer's statistics and sets its scale and shift so that
    its outputs in inference do not change; training then starts from the same function. Call it before `fit`; it does
    not harm a network whose statistics are already correct. An experiment's fine-tuning stage calls it if the
    backbone's published weights are folded.

    Args:
        network: The network, whose backbone is a functional model.
        images: Float images `[count, height, width, 3]` in [0, 1] like the training images; a few hundred are enough.
        batch_size: Images per batch.

    Raises:
        ValueError: If the images do not fit the network, or a layer has no scale and shift to set.

    Example:
        >>> network = ImageClassifier.from_backbone("mobilenet_face", num_classes=8, weights="vggface2")
        >>> restore_batch_norm(network, images[:500])

    Source:
        Re-estimated statistics: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3 ("PreciseBN").
    """
    images = np.asarray(images)
    if images.shape[1:] != network.image_shape or not len(images) or not 0 <= images.min() <= images.max() <= 1:
        raise ValueError(
            f"Images are [count, {', '.join(map(str, network.image_shape))}], at least one, in [0, 1]. "
            f"Received: {images.dtype} of shape {images.shape}"
        )
    backbone = network.backbone
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        if not (layer.scale and layer.center and layer.axis in (-1, len(layer.input.shape) - 1)):
            raise ValueError(
                f"Batch normalisation needs scale, shift and channels last. Received: layer {layer.name!r}"
            )
    if not norms:
        return
    inputs = keras.Model(backbone.inputs, [layer.input for layer in norms])
    sums = [np.zeros((2, layer.gamma.shape[0])) for layer in norms]
    counts = [0] * len(norms)
    for start in range(0, len(images), batch_size):
        batch = tf.constant(images[start : start + batch_size], tf.float32)
        values = inputs(network.preprocessing(batch), training=False)
        for index, value in enumerate(values if isinstance(values, list) else [values]):
            rows = np.asarray(tf.cast(value, tf.float32), "float64").reshape(-1, value.shape[-1])
            sums[index] += rows.sum(0), (rows**2).sum(0)
            counts[index] += len(rows)
    for layer, (total, squares), count in zip(norms, sums, counts, strict=True):
        gamma, beta, old_mean, old_variance = (each.astype("float64") for each in layer.get_weights())
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0.0)
        slope = gamma / np.sqrt(old_variance + layer.epsilon)
        layer.set_weights([slope * np.sqrt(variance + layer.epsilon), beta + slope * (mean - old_mean), mean, variance])
