"""Transforms that improve the transfer of iterative attacks: they change the network's input or the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tensorflow as tf

from satm_tf.attacks.sources import Model
from satm_tf.configurable import Configurable

_fold_in = tf.random.experimental.stateless_fold_in


@dataclass(frozen=True, kw_only=True)
class Transform(Configurable, kind="transform"):
    """A transform. You can combine several: images pass through them in the order given, and so do gradients.

    Example:
        >>> MIFGSM(epsilon=16 / 256, transforms=(InputDiversity(), TranslationInvariance(size=5)))  # MI-DI-TI
        >>> get("mi_fgsm", epsilon=16 / 256, transforms=["input_diversity", {"name": "scale_invariance", "copies": 3}])
    """

    def network(self, model: Model, seed: tf.Tensor) -> Model:
        """The network to use at one step; `seed` is int32 `[2]`. Several answers per image go on a leading axis."""
        return model

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        """The gradient to use instead of this one, `[batch, height, width, channels]`."""
        return gradient


@dataclass(frozen=True, kw_only=True)
class _Copies(Transform):
    """A transform whose network sees several copies of each image, and answers `[copies, batch, classes]`."""

    def network(self, model: Model, seed: tf.Tensor) -> Model:
        def answers(images: tf.Tensor, training: bool = False) -> tf.Tensor:
            logits = model(tf.concat(self.seen(images, seed), axis=0), training=training)
            return tf.reshape(logits, [-1, tf.shape(images)[0], logits.shape[-1]])

        return answers

    def seen(self, images: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
        """The copies, each like `images`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class InputDiversity(Transform, name="input_diversity"):
    """DI: the network sees each image, with some probability, shrunk to a random size at a random place on black.

    The paper enlarges 299 pixels to at most 330; here the images shrink by the same factor, so that networks with a
    fixed input size accept them. Each image, at each step, has its own size and place.

    Attributes:
        probability: The probability that an image is changed.
        smallest: The smallest size, as a share of the image's, in (0, 1].

    Raises:
        ValueError: If either lies outside its range.

    Source:
        Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity", CVPR 2019.
    """

    probability: float = 0.5
    smallest: float = 0.9

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 < self.smallest <= 1):
            raise ValueError(f"probability must lie in [0, 1] and smallest in (0, 1]. Received: {self}")

    def network(self, model: Model, seed: tf.Tensor) -> Model:
        """The network behind the random shrinking."""

        def diverse(images: tf.Tensor, training: bool = False) -> tf.Tensor:
            shape = tf.shape(images)
            size, top, left, chance = tf.unstack(tf.random.stateless_uniform([4, shape[0]], seed))
            size = self.smallest + (1 - self.smallest) * size
            top, left = top * (1 - size), left * (1 - size)
            # A box larger than the image shrinks it: everything outside the image is black.
            shrunk = tf.stack([-top, -left, 1 - top, 1 - left], axis=-1) / size[:, None]
            boxes = tf.where(chance[:, None] < self.probability, shrunk, [0.0, 0.0, 1.0, 1.0])
            seen = tf.image.crop_and_resize(images, boxes, tf.range(shape[0]), shape[1:3])
            return model(tf.ensure_shape(seen, images.shape), training=training)

        return diverse


@dataclass(frozen=True, kw_only=True)
class TranslationInvariance(Transform, name="translation_invariance"):
    """TI: the gradient blurred by a Gaussian, which approximates the mean gradient of shifted images.

    Attributes:
        size: Width of the kernel in pixels, odd. The paper uses 15 for images of 299 pixels; use less for small images.

    Raises:
        ValueError: If the size is not odd and positive.

    Source:
        Dong et al., "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks", CVPR
        2019; the deviation is its `k / sqrt(3)` for a kernel of size `2 k + 1`.
    """

    size: int = 7

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise ValueError(f"The size of a kernel must be odd and positive. Received: size={self.size}")

    def gradient(self, gradient: tf.Tensor) -> tf.Tensor:
        """The gradient, blurred."""
        reach = self.size // 2
        offsets = tf.range(-reach, reach + 1, dtype=tf.float32)
        weights = tf.nn.softmax(-1.5 * tf.square(offsets / max(reach, 1)))
        channels = gradient.shape[-1]
        # A 2D Gaussian is the product of a column and a row.
        for shape in ([self.size, 1, 1, 1], [1, self.size, 1, 1]):
            kernel = tf.tile(tf.reshape(weights, shape), [1, 1, channels, 1])
            gradient = tf.nn.depthwise_conv2d(gradient, kernel, [1, 1, 1, 1], "SAME")
        return gradient


@dataclass(frozen=True, kw_only=True)
class BlockShuffle(_Copies, name="block_shuffle"):
    """BSR: the network sees several copies of each image, cut into blocks that are shuffled and slightly rotated.

    Each copy has its own cuts, order and angles, the same for all images of a batch. Rows of blocks are shuffled, and
    then the blocks within each row. Rotation fills in black from outside a block.

    Attributes:
        copies: Number of copies, each of which costs one more gradient. The authors' 20 cost twice as much.
        blocks: Into how many blocks each side is cut; the authors' 2 or 3.
        degrees: The largest rotation angle; the authors' 24.

    Raises:
        ValueError: If a number is out of range.

    Source:
        Wang et al., "Boosting Adversarial Transferability by Block Shuffle and Rotation", CVPR 2024.
    """

    copies: int = 10
    blocks: int = 2
    degrees: float = 24.0

    def __post_init__(self) -> None:
        if self.copies < 1 or self.blocks < 1 or not 0 <= self.degrees <= 180:
            raise ValueError(f"copies and blocks must be at least 1, degrees in [0, 180]. Received: {self}")

    def seen(self, images: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
        return [self._shuffle(images, _fold_in(seed, copy)) for copy in range(self.copies)]

    def _shuffle(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        _, height, width, _ = tf.unstack(tf.shape(images))
        strips = []
        for row, (top, bottom) in enumerate(map(tf.unstack, tf.unstack(self._strips(height, seed)))):
            key, blocks = _fold_in(seed, 2 + row), []
            for column, (left, right) in enumerate(map(tf.unstack, tf.unstack(self._strips(width, key)))):
                blocks.append(_turned(images[:, top:bottom, left:right], self.degrees, _fold_in(key, 2 + column)))
            strips.append(tf.concat(blocks, axis=2))
        return tf.ensure_shape(tf.concat(strips, axis=1), images.shape)

    def _strips(self, length: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Where strips begin and end, int32 `[blocks, 2]`, in their new order."""
        shares = tf.random.stateless_uniform([self.blocks], seed, 0.1, 1.0)
        ends = tf.cast(tf.round(tf.cumsum(shares) / tf.reduce_sum(shares) * tf.cast(length, tf.float32)), tf.int32)
        strips = tf.stack([tf.concat([[0], ends[:-1]], 0), ends], axis=1)
        return tf.gather(strips, tf.argsort(tf.random.stateless_uniform([self.blocks], _fold_in(seed, 1))))


def _turned(images: tf.Tensor, degrees: float, seed: tf.Tensor) -> tf.Tensor:
    """Images rotated about their centre by one random angle, bilinear, on black."""
    angle = tf.random.stateless_uniform([], seed, -degrees, degrees) * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    height, width = tf.unstack(tf.cast(tf.shape(images)[1:3] - 1, tf.float32) / 2)
    shift = width - cos * width + sin * height, height - sin * width - cos * height
    turn = tf.stack([cos, -sin, shift[0], sin, cos, shift[1], 0.0, 0.0])
    turns = tf.tile(turn[None], [tf.shape(images)[0], 1])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=turns, output_shape=tf.shape(images)[1:3], fill_value=0.0, interpolation="BILINEAR"
    )


@dataclass(frozen=True, kw_only=True)
class Admix(_Copies, name="admix"):
    """Admix: the network sees each image mixed with a little of others from its batch, at several brightnesses.

    No gradient flows to the images that are mixed in. In a batch of one it is `ScaleInvariance` of a
    brighter image.

    Attributes:
        mixed: Number of other images that are mixed in, one at a time.
        strength: The share of the other image that is added.
        copies: Number of brightnesses, `x / 2^i` from `i = 0`. It takes `mixed * copies` gradients instead of one.

    Raises:
        ValueError: If a number is out of range.

    Source:
        Wang et al., "Admix: Enhancing the Transferability of Adversarial Attacks", ICCV 2021, with its numbers.
    """

    mixed: int = 3
    strength: float = 0.2
    copies: int = 5

    def __post_init__(self) -> None:
        if self.mixed < 1 or self.copies < 1 or not 0 <= self.strength <= 1:
            raise ValueError(f"mixed and copies must be at least 1, and strength in [0, 1]. Received: {self}")

    def seen(self, images: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
        copies = []
        for index in range(self.mixed):
            order = tf.argsort(tf.random.stateless_uniform(tf.shape(images)[:1], _fold_in(seed, index)))
            together = images + self.strength * tf.stop_gradient(tf.gather(images, order))
            copies += [together / 2**i for i in range(self.copies)]
        return copies


@dataclass(frozen=True, kw_only=True)
class ScaleInvariance(_Copies, name="scale_invariance"):
    """SI: the network sees each image at several brightnesses, `x / 2^i`, and the losses are averaged.

    Attributes:
        copies: Number of copies, from `i = 0`. Each costs one more gradient.

    Raises:
        ValueError: If `copies` is below 1.

    Source:
        Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", ICLR 2020, Eq. 6.
    """

    copies: int = 5

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"Scale invariance needs at least one copy. Received: copies={self.copies}")

    def seen(self, images: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
        return [images / 2**i for i in range(self.copies)]
