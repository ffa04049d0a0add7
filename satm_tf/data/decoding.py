"""From image files to pixels of one size, inside a `tf.data` graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from satm_tf.data.examples import Examples

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
        crop: As `decode` takes it.
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
    """Resizes uint8 images `[..., height, width, 3]` as `decode` does; returns themselves if they have that size."""
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


def read_files(rows: tf.Tensor, examples: Examples, size: tuple[int, int], crop: float | None) -> tf.data.Dataset:
    """The pixels of some files (rows, int64 `[k]`), read and decoded in parallel: k elements, uint8 `[*size, 3]`.

    TensorFlow's error for a file that does not decode gives its length, not its name. So such files are dropped here,
    and the error names the first one that is missing.
    """
    paths, k = tf.constant(examples.paths), tf.shape(rows, tf.int64)[0]

    def expect(place: tf.Tensor, found: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        message = ["An image that was whole when it was loaded does not decode. Received:", paths[rows[place]]]
        with tf.control_dependencies([tf.debugging.Assert(found[0] == place, message)]):
            return place + 1, tf.identity(found[1])

    end = tf.data.Dataset.from_tensors((k, tf.zeros([*size, 3], tf.uint8)))
    found = decodable(rows, examples, size, crop)
    return found.concatenate(end).scan(tf.constant(0, tf.int64), expect).take(k)


def decodable(rows: tf.Tensor, examples: Examples, size: tuple[int, int], crop: float | None) -> tf.data.Dataset:
    """The position in `rows`, int64 scalar, and the pixels of each file that decodes; the others are left out."""
    paths = tf.constant(examples.paths)
    orientations = None if examples.orientations is None else tf.constant(examples.orientations)

    def read(place: tf.Tensor, row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        orientation = None if orientations is None else orientations[row]
        return place, decode(paths[row], size, orientation=orientation, crop=crop)

    dataset = tf.data.Dataset.from_tensor_slices(rows).enumerate()
    return dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()


def array_reader(examples: Examples, size: tuple[int, int]) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from some rows (int64 `[k]`) of decoded images to their pixels, uint8 `[k, *size, 3]`."""
    images: Any = examples.images

    def read(rows: tf.Tensor) -> tf.Tensor:
        pixels = tf.numpy_function(images.__getitem__, [rows], tf.uint8)
        return resize(tf.ensure_shape(pixels, [rows.shape[0], *images.shape[1:]]), size)

    return read


def decoded(examples: Examples, size: tuple[int, int], crop: float | None = None) -> Examples:
    """The same examples with their files decoded into memory, in parallel, as `read_files` does."""
    images = np.empty((len(examples), *size, 3), np.uint8)
    dataset = read_files(tf.range(len(examples), dtype=tf.int64), examples, size, crop)
    for row, pixels in enumerate(dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()):
        images[row] = pixels
    return replace(examples, paths=None, orientations=None, images=images)
