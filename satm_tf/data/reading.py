"""Readers: functions from the rows of examples to their pixels, for use inside a `tf.data` graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from satm_tf.data.decoding import decode, resize
from satm_tf.data.examples import Examples

Reader = Callable[[tf.Tensor], tf.Tensor]


def file_reader(examples: Examples, size: tuple[int, int], crop: float | None = None) -> Reader:
    """A function from one row (int64 scalar) to its file's pixels, uint8 `[*size, 3]`, as `decode` makes them."""
    paths = tf.constant(examples.paths)
    orientations = None if examples.orientations is None else tf.constant(examples.orientations)

    def read(row: tf.Tensor) -> tf.Tensor:
        orientation = None if orientations is None else orientations[row]
        return decode(paths[row], size, orientation=orientation, crop=crop)

    return read


def read_files(rows: tf.Tensor, examples: Examples, size: tuple[int, int], crop: float | None) -> tf.data.Dataset:
    """The pixels of some files, read and decoded in parallel, in order.

    TensorFlow's error for a file that does not decode gives its length, not its name. So such files are dropped here,
    and the error names the first one that is missing.

    Args:
        rows: The examples to read, int64 `[k]`.
        examples: Of files.
        size: Height and width of the result.
        crop: As `decode` takes it.

    Returns:
        A data set of k elements, uint8 `[*size, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: while iterating, if a file does not decode.
    """
    read, paths, k = file_reader(examples, size, crop), tf.constant(examples.paths), tf.shape(rows, tf.int64)[0]

    def expect(place: tf.Tensor, found: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        message = ["An image that was whole when it was loaded does not decode. Received:", paths[rows[place]]]
        with tf.control_dependencies([tf.debugging.Assert(found[0] == place, message)]):
            return place + 1, tf.identity(found[1])

    end = tf.data.Dataset.from_tensors((k, tf.zeros([*size, 3], tf.uint8)))
    return decodable(rows, read).concatenate(end).scan(tf.constant(0, tf.int64), expect).take(k)


def decodable(rows: tf.Tensor, read: Reader) -> tf.data.Dataset:
    """The position in `rows`, int64 scalar, and the pixels of each file that decodes; the others are left out."""
    dataset = tf.data.Dataset.from_tensor_slices(rows).enumerate()
    return dataset.map(lambda place, row: (place, read(row)), num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()


def array_reader(examples: Examples, size: tuple[int, int]) -> Reader:
    """A function from some rows (int64 `[k]`) to their pixels, uint8 `[k, *size, 3]`."""
    images: Any = examples.images

    def read(rows: tf.Tensor) -> tf.Tensor:
        pixels = tf.numpy_function(images.__getitem__, [rows], tf.uint8)
        return resize(tf.ensure_shape(pixels, [rows.shape[0], *images.shape[1:]]), size)

    return read


def decoded(examples: Examples, size: tuple[int, int], crop: float | None = None) -> Examples:
    """The examples with their files decoded into memory, in parallel.

    Args:
        examples: Of files.
        size: Height and width of the decoded images.
        crop: As `decode` takes it.

    Returns:
        The same examples of images, uint8 `[n, *size, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: if a file does not decode.
    """
    images = np.empty((len(examples), *size, 3), np.uint8)
    dataset = read_files(tf.range(len(examples), dtype=tf.int64), examples, size, crop)
    for row, pixels in enumerate(dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()):
        images[row] = pixels
    return Examples(labels=examples.labels, images=images, subjects=examples.subjects)
