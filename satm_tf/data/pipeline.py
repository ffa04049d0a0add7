"""From examples to batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from satm_tf.data.decoding import array_reader, decoded, read_files
from satm_tf.data.examples import Examples


def order(n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which a shuffled epoch visits `n` examples, int64 `[n]`; it depends only on `seed` and `epoch`."""
    return np.random.default_rng((seed, epoch)).permutation(n)


class Batches(tf.data.Dataset):
    """A data set of batches that can start anywhere in its sequence of epochs; `batches` makes it.

    It is a `tf.data.Dataset` like any other: Keras fits on it and `tf.distribute` distributes it. The result of `map`
    can start anywhere too; other transformations return plain data sets.

    Its length is that of an epoch; it is unknown if the first epoch starts in the middle.

    Attributes:
        ordered: Whether neighbouring labels are neighbouring classes; None if unknown.
        num_examples: How many examples an epoch has, over all processes.

    Example:
        >>> train = batches(data.train, image_size=64, batch_size=8)
        >>> grey = train.map(lambda images, labels: (tf.image.rgb_to_grayscale(images), labels))
        >>> resumed = grey.from_position(first_epoch=3, first_step=20)
    """

    def __init__(
        self,
        start: Callable[[int, int, tf.distribute.InputContext | None], tf.data.Dataset],
        first_epoch: int = 0,
        first_step: int = 0,
        input_context: tf.distribute.InputContext | None = None,
        *,
        ordered: bool | None = None,
        num_examples: int,
        numbered: Callable[..., tf.data.Dataset] | None = None,
    ) -> None:
        # `start` makes the data set that starts at an epoch and a step, for one of several processes or for all (None).
        # `numbered` makes it with the numbers of the images, if these are neither augmented nor mapped.
        self.ordered = ordered
        self.num_examples = num_examples
        self._numbered = numbered
        self._start = start
        self._position = (first_epoch, first_step, input_context)
        self._dataset = start(*self._position)
        super().__init__(tf.data.experimental.to_variant(self._dataset))

    @property
    def element_spec(self) -> Any:
        """The shapes and dtypes of a batch."""
        return self._dataset.element_spec

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._dataset]

    def from_position(
        self, first_epoch: int, first_step: int, input_context: tf.distribute.InputContext | None = None
    ) -> Batches:
        """The same data, starting at another epoch and step; arguments are as for `batches`."""
        return self._like(self._start, first_epoch, first_step, input_context, numbered=self._numbered)

    def map(self, map_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Batches:
        """Applies a function to every batch, as `tf.data.Dataset.map` does."""
        return self._like(lambda *position: self._start(*position).map(map_func, *args, **kwargs), *self._position)

    @cached_property
    def numbered(self) -> Batches:
        """The same batches as `((images, rows), labels)`; `rows`, int64 `[batch]`, are places in the examples.

        Raises:
            ValueError: If the images are augmented or mapped: one number would refer to many images.
        """
        return self._like(self._with_numbers(), *self._position, numbered=self._numbered)

    def in_order(self) -> tf.data.Dataset:
        """Batches of every example once, in their order, with elements as those of `numbered`.

        Raises:
            ValueError: As `numbered` does.
        """
        return self._with_numbers()(0, 0, None, shuffle=False, drop_remainder=False)

    def _with_numbers(self) -> Callable[..., tf.data.Dataset]:
        if self._numbered is None:
            raise ValueError(
                "Numbered images cannot be augmented or mapped, because they would differ in each epoch; leave out "
                "augmentation and `map`. Received: batches with one of them"
            )
        return self._numbered

    def _like(self, start: Callable[..., tf.data.Dataset], *position: Any, **numbered: Any) -> Batches:
        return Batches(start, *position, ordered=self.ordered, num_examples=self.num_examples, **numbered)


def batches(
    examples: Examples,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    first_epoch: int = 0,
    first_step: int = 0,
    drop_remainder: bool = False,
    augmentation: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    crop: float | None = None,
    cache: bool = False,
    input_context: tf.distribute.InputContext | None = None,
) -> Batches:
    """Batches of images and labels, the same ones every time for the same `seed` and epoch.

    The n-th iteration over the data set is epoch `first_epoch + n`. A resumed run that passes the number of completed
    epochs, and of completed steps in the next one, sees the same batches, augmented alike, as an uninterrupted one.
    Files are read and decoded in parallel, at reduced scale if the format allows it, while the previous batch is used
    for training.

    Args:
        examples: What to batch. Image files are decoded again in each epoch unless `cache`.
        image_size: Height and width, or one number for both.
        batch_size: Images per batch; the global batch if `input_context` is given.
        shuffle: Whether each epoch has a different order; otherwise it is that of `examples`.
        seed: The seed of order and augmentation, non-negative.
        first_epoch: The number of the first iteration's epoch.
        first_step: How many batches of that epoch to leave out.
        drop_remainder: Whether to leave out a last, smaller batch. For training; never for measuring.
        augmentation: Called with float32 images `[batch, height, width, 3]` in [0, 1] and a seed, int32 `[2]`; returns
            images of the same kind. Such as `Augmentation`.
        crop: The side of the central square to use of each file, as a share of its shorter side, in (0, 1]; None uses
            all of it, stretched to `image_size`. ImageNet networks are measured with `imagenet.CROP`.
        cache: Whether to decode all files now and keep them in memory, 3 bytes per pixel. For small sets.
        input_context: Which part of each global batch this process reads, as
            `strategy.distribute_datasets_from_function` gives it. Only that part is decoded.

    Returns:
        A data set whose elements are float32 RGB images `[batch, height, width, 3]` in [0, 1] and int32 labels
        `[batch]`.

    Raises:
        ValueError: if there are no examples, a number is outside its range, or `drop_remainder` would leave nothing.
        tf.errors.InvalidArgumentError: while iterating, if a file has become unreadable since it was loaded. The
            message names it; no other image replaces it.

    Example:
        >>> train = batches(data.train, image_size=224, batch_size=8, shuffle=True, drop_remainder=True)
        >>> model.fit(train, validation_data=batches(data.validation, image_size=224, batch_size=32))
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    _check(examples, size, batch_size, drop_remainder, crop)
    _check_position(seed, first_epoch, first_step)
    n = len(examples)
    start = partial(
        _dataset,
        decoded(examples, size, crop) if cache and examples.images is None else examples,
        size,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        augmentation=augmentation,
        crop=crop,
    )
    return Batches(
        start,
        first_epoch,
        first_step,
        input_context,
        ordered=examples.ordered,
        num_examples=n - n % batch_size if drop_remainder else n,
        numbered=partial(start, numbered=True) if augmentation is None else None,
    )


def _dataset(
    examples: Examples,
    size: tuple[int, int],
    batch_size: int,
    first_epoch: int,
    first_step: int,
    input_context: tf.distribute.InputContext | None,
    *,
    shuffle: bool,
    seed: int,
    drop_remainder: bool,
    augmentation: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None,
    crop: float | None,
    numbered: bool = False,
) -> tf.data.Dataset:
    """The batches that `batches` describes, as a plain data set."""
    _check_position(seed, first_epoch, first_step)
    n = len(examples)
    context = input_context or tf.distribute.InputContext()
    local_batch = context.get_per_replica_batch_size(batch_size)
    # Each of k pipelines takes every k-th row, in batches a k-th as large.
    part = slice(context.input_pipeline_id, n - n % batch_size if drop_remainder else n, context.num_input_pipelines)
    rows_read = len(range(n)[part])
    labels = tf.constant(examples.labels)
    epochs = itertools.count(first_epoch)

    def start_epoch() -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        epoch = next(epochs)
        begin = first_step if epoch == first_epoch else 0
        rows = (order(n, seed=seed, epoch=epoch) if shuffle else np.arange(n))[part]
        yield epoch, begin, rows[begin * local_batch :]

    def read_epoch(epoch: tf.Tensor, begin: tf.Tensor, rows: tf.Tensor) -> tf.data.Dataset:
        batched = tf.data.Dataset.from_tensor_slices(rows).batch(local_batch, drop_remainder=drop_remainder)
        if examples.images is None:
            pixels = read_files(rows, examples, size, crop).batch(local_batch, drop_remainder=drop_remainder)
        else:
            pixels = batched.map(array_reader(examples, size), num_parallel_calls=tf.data.AUTOTUNE)

        def finish(step: tf.Tensor, batch: tuple[tf.Tensor, tf.Tensor]) -> tuple[Any, tf.Tensor]:
            images = tf.cast(batch[1], tf.float32) / 255.0
            if augmentation is not None:
                key = tf.constant([seed, context.input_pipeline_id], tf.int32)
                for number in (epoch, step):
                    key = tf.random.experimental.stateless_fold_in(key, tf.cast(number, tf.int32))
                images = tf.ensure_shape(augmentation(images, key), images.shape)
            return (images, batch[0]) if numbered else images, tf.gather(labels, batch[0])

        steps = tf.data.Dataset.zip((batched, pixels)).enumerate(begin)
        return steps.map(finish, num_parallel_calls=tf.data.AUTOTUNE)

    numbers = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int64))
    dataset = tf.data.Dataset.from_generator(
        start_epoch, output_signature=(*numbers, tf.TensorSpec([None], tf.int64))
    ).flat_map(read_epoch)
    if not first_step:
        steps = rows_read // local_batch if drop_remainder else -(-rows_read // local_batch)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    options = tf.data.Options()
    options.deterministic = True
    # By default tf.distribute looks for files to distribute among workers, and this graph has none.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _check(
    examples: Examples, size: tuple[int, int], batch_size: int, drop_remainder: bool, crop: float | None
) -> None:
    n = len(examples)
    if min(*size, batch_size) < 1:
        raise ValueError(f"Sizes must be positive. Received: image_size={size}, batch_size={batch_size!r}")
    if n < (batch_size if drop_remainder else 1):
        raise ValueError(
            f"There are not enough examples for one batch. Received: {n} examples, batch_size={batch_size}, "
            f"drop_remainder={drop_remainder}"
        )
    if crop is not None and (examples.images is not None or not 0 < crop <= 1):
        raise ValueError(
            "`crop` is for image files, and must be a share of their shorter side above 0 and at most 1. Received: "
            f"{crop!r} for {'files' if examples.images is None else 'decoded images'}"
        )


def _check_position(seed: int, first_epoch: int, first_step: int) -> None:
    if min(seed, first_epoch, first_step) < 0:
        raise ValueError(
            "Seed, epoch and step must be non-negative. "
            f"Received: seed={seed!r}, first_epoch={first_epoch!r}, first_step={first_step!r}"
        )
