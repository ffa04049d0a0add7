"""Random changes to clean images that preserve what they show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import tensorflow as tf


class _Draws(keras.random.SeedGenerator):
    """A stateless seed generator: its k-th seed depends only on a key and k.

    Keras's generator counts in a variable, whose value would differ in a resumed run.
    """

    def __init__(self, key: tf.Tensor) -> None:
        self._key = key
        self._drawn = 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        self._drawn += 1
        return tf.bitcast(tf.random.experimental.stateless_fold_in(self._key, self._drawn), tf.uint32)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Shifts, rotates, zooms, flips and recolours each image of a batch by its own random amounts, with Keras.

    Augment before crafting: the adversarial image is then made from the augmented one, and stays inside its ball.
    Shift, rotation and zoom each resample the image and so blur it a little; at 0 they do nothing.

    Args:
        flip: Whether to mirror half of the images left to right. Not for digits or letters.
        shift: Maximum shift in each direction, as a share of the image's side, in [0, 1).
        rotation: Maximum rotation in either direction, in degrees, in [0, 180).
        zoom: Maximum zoom in or out, as a share, in [0, 1).
        colour: Maximum change of brightness, contrast and saturation, as a share, in [0, 1).

    Raises:
        ValueError: if an amount is outside its range.

    Example:
        >>> augmented = Augmentation(rotation=15)(tf.zeros([8, 64, 64, 3]), seed=tf.constant([1, 2]))
    """

    flip: bool = True
    shift: float = 0.05
    rotation: float = 10.0
    zoom: float = 0.1
    colour: float = 0.1

    def __post_init__(self) -> None:
        for name, bound in (("shift", 1), ("rotation", 180), ("zoom", 1), ("colour", 1)):
            if not 0 <= getattr(self, name) < bound:
                raise ValueError(f"`{name}` must be in [0, {bound}). Received: {getattr(self, name)!r}")

    @cached_property
    def _layers(self) -> tuple[Any, ...]:
        moving = {"fill_mode": "nearest", "dtype": "float32"}
        colouring = {"value_range": (0.0, 1.0), "dtype": "float32"}
        saturation = (0.5 - self.colour / 2, 0.5 + self.colour / 2)
        layers = (
            (self.flip, lambda: keras.layers.RandomFlip("horizontal", dtype="float32")),
            (self.shift, lambda: keras.layers.RandomTranslation(self.shift, self.shift, **moving)),
            (self.rotation, lambda: keras.layers.RandomRotation(self.rotation / 360, **moving)),
            (self.zoom, lambda: keras.layers.RandomZoom(self.zoom, **moving)),
            (self.colour, lambda: keras.layers.RandomBrightness(self.colour, **colouring)),
            (self.colour, lambda: keras.layers.RandomContrast(self.colour, **colouring)),
            (self.colour, lambda: keras.layers.RandomSaturation(saturation, **colouring)),
        )
        with tf.init_scope():  # each makes a variable for its seed, which a `tf.data` graph may not
            return tuple(make() for wanted, make in layers if wanted)

    def __call__(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Augments a batch, the same way every time for the same seed.

        Args:
            images: float32 `[batch, height, width, 3]` in [0, 1].
            seed: int32 `[2]`.

        Returns:
            Images of the same kind.
        """
        draws = _Draws(seed)
        for layer in self._layers:
            change = layer.get_random_transformation(images, training=True, seed=draws)
            images = layer.transform_images(images, change, training=True)
        return tf.clip_by_value(images, 0.0, 1.0)
