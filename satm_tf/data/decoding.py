"""From an image file to pixels of one size, inside a `tf.data` graph."""

from __future__ import annotations

import tensorflow as tf

_RATIOS = (1, 2, 4, 8)
# The steps that turn each EXIF orientation upright: transpose, then flip top to bottom, then left to right.
_UPRIGHT = ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 0))


def decode(
    path: tf.Tensor, size: tuple[int, int], *, orientation: tf.Tensor | None = None, crop: float | None = None
) -> tf.Tensor:
    """Reads a JPEG, PNG or GIF as upright RGB pixels of a given size.

    Grey becomes three equal channels, CMYK and palettes become RGB, 16 bits become 8, an alpha channel is dropped, and
    only the first frame of an animation is used. A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, the smallest
    that is not below `size`: the decoder then averages as it scales, which costs less than decoding at full size. The
    remaining resize is bilinear, with an antialiasing filter if it shrinks by more than a factor of two. Only a crop
    keeps the aspect ratio, because faces come as squares.

    Args:
        path: The file, str scalar.
        size: Height and width of the result.
        orientation: The EXIF orientation, int scalar in 1 to 8; None if it is upright.
        crop: The side of the central square to use, as a share of the image's shorter side, in (0, 1]; None for all of
            the image.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: when executed, if the file does not decode.
    """
    contents = tf.io.read_file(path)
    image = tf.cond(
        tf.io.is_jpeg(contents),
        lambda: decode_jpeg(contents, max(size), crop),
        lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
    )
    image = tf.ensure_shape(image, [None, None, 3])
    if orientation is not None:
        image = tf.cond(orientation == 1, lambda: image, lambda: turn_upright(image, orientation))
    if crop is not None:
        shape = tf.shape(image)[:2]
        side = tf.cast(tf.round(crop * tf.cast(tf.reduce_min(shape), tf.float32)), tf.int32)
        top, left = tf.unstack((shape - side) // 2)
        image = image[top : top + side, left : left + side]
    return resize(image, size)


def decode_jpeg(contents: tf.Tensor, side: int, crop: float | None = None) -> tf.Tensor:
    """Decodes a JPEG at the smallest of 1, 1/2, 1/4 and 1/8 of its size that still holds a side.

    Args:
        contents: The bytes of the file, str scalar.
        side: The pixels that the shorter side, or the cropped part of it, must keep.
        crop: The share of the shorter side that is used, in (0, 1]; None for all.

    Returns:
        uint8 `[height, width, 3]`, oriented as in the file.
    """
    shorter = tf.cast(tf.reduce_min(tf.io.extract_jpeg_shape(contents)[:2]), tf.float32)
    spare = shorter * (1.0 if crop is None else crop) / side
    smallest = tf.reduce_sum(tf.cast(spare >= tf.constant(_RATIOS[1:], tf.float32), tf.int32))
    return tf.switch_case(
        smallest,
        [
            # TensorFlow's default is a fast inverse DCT, 2 of 255 levels off, to save 5 % of the time.
            lambda ratio=ratio: tf.io.decode_jpeg(contents, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")
            for ratio in _RATIOS
        ],
    )


def turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns an image `[height, width, channels]` as its EXIF orientation, 1 to 8, asks."""
    steps = tf.cast(_UPRIGHT, tf.bool)[tf.cast(orientation, tf.int32) - 1]
    image = tf.cond(steps[0], lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(steps[1], lambda: image[::-1], lambda: image)
    return tf.cond(steps[2], lambda: image[:, ::-1], lambda: image)


def resize(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resizes one image or a batch: bilinear, with an antialiasing filter where it shrinks by more than two.

    Args:
        images: uint8 `[..., height, width, 3]`.
        size: Height and width of the result.

    Returns:
        uint8 `[..., *size, 3]`, rounded. The images themselves if they have that size.
    """
    if tuple(images.shape[-3:-1]) == size:
        return images
    shape = tf.shape(images)[-3:-1]
    shrunk = tf.reduce_max(shape / tf.constant(size))
    resized = tf.cond(
        shrunk > 2.0,
        lambda: tf.image.resize(images, size, antialias=True),
        lambda: tf.image.resize(images, size),
    )
    return tf.cast(resized + 0.5, tf.uint8)  # the cast truncates; `tf.round` takes as long as the resize
