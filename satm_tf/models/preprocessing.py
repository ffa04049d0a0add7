"""A backbone's input preprocessing as a layer, so that attacks differentiate through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="satm_tf")
class Preprocessing(keras.layers.Layer):
    """Converts float RGB images in [0, 1] to a backbone's input: size, channel order, `scale * x + offset`.

    Always float32, whatever the dtype policy, because bfloat16 has only 8 bits for a pixel minus its mean.

    Args:
        scale: Float, or one per channel, in the order that the backbone sees.
        offset: Float, or one per channel, in the order that the backbone sees.
        reverse_channels: Whether the backbone expects BGR.
        size: `(height, width)` to resize to (bilinear; shrinking does not smooth, so give images of about this size or
            smaller), or None to keep the size of the images.

    Example:
        >>> images = tf.ones([1, 8, 8, 3])
        >>> float(tf.reduce_max(Preprocessing(scale=2.0, offset=-1.0)(images)))
        1.0
    """

    def __init__(
        self,
        scale: float | Sequence[float] = 1.0,
        offset: float | Sequence[float] = 0.0,
        reverse_channels: bool = False,
        size: tuple[int, int] | None = None,
        name: str = "preprocessing",
    ):
        super().__init__(trainable=False, dtype="float32", name=name)
        self.scale = scale
        self.offset = offset
        self.reverse_channels = reverse_channels
        self.size = tuple(size) if size else None

    def call(self, images: tf.Tensor) -> tf.Tensor:
        if self.size and self.size != tuple(images.shape[1:3]):
            images = tf.image.resize(images, self.size)
        if self.reverse_channels:
            images = images[..., ::-1]
        return images * tf.constant(self.scale, tf.float32) + tf.constant(self.offset, tf.float32)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], *(self.size or input_shape[1:3]), input_shape[3])

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("scale", "offset", "reverse_channels", "size", "name")}
