"""Checks before training and in each step, and the errors that `fit` raises for a failed step."""

from __future__ import annotations

import contextlib
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf.models import ImageClassifier

# The tolerance for float32 rounding, such as that of a resize.
_ROUNDING = 1e-6
# TensorFlow quotes a message in brackets or quotation marks.
_OUT_OF_RANGE = r"(?:Images|Labels) must be .+? Received values from \S+ to [^\s\]'\"]+"
_OTHER_RANK = r"Shape of tensor \S+ (\[[\d,]*\]) is not compatible with expected shape \[\?\]"
_ONE_LABEL_EACH = "Labels must be one integer for each image, of shape [batch], neither one-hot nor [batch, 1]."
_NOT_FINITE = "is not a finite number at step"
_SAVE_AT_THE_END = "Add satm_tf.Checkpoint to resume, and save each of trainer.networks at the end"
# By package and class: MLflow is not a dependency, and only logs errors that its callback raises in `fit`.
_INSTEAD = {
    "keras.ModelCheckpoint": _SAVE_AT_THE_END,
    "keras.BackupAndRestore": "Add satm_tf.Checkpoint to resume",
    "keras.SwapEMAWeights": "Validation and callbacks see the averages already",
    "mlflow.MlflowModelCheckpointCallback": _SAVE_AT_THE_END,
}


def check_networks(
    networks: Mapping[str, ImageClassifier],
    frozen: Mapping[str, Any],
    sparring: Mapping[str, ImageClassifier],
    *,
    null_class: bool = False,
) -> None:
    """Refuses networks that cannot train together.

    Raises:
        ValueError: If there are no networks, one has two names, shapes or numbers of classes differ, or a null class
            is missing.

    Warns:
        UserWarning: If two networks start from equal weights.
    """
    if not networks:
        raise ValueError("CoTraining needs at least one network. Received: none")
    common = set(networks) & set(frozen)
    shared = [network for each in (networks, frozen, sparring) for network in {id(n): n for n in each.values()}]
    if common or len(set(shared)) < len(shared):
        raise ValueError(
            "Each network must be exactly one of these: trained, frozen, or a sparring partner. Received: "
            f"{sorted(common) or [*networks, *sparring]}"
        )
    without = [name for each in (networks, sparring) for name, network in each.items() if not network.null_class]
    if null_class and without:
        raise ValueError(
            "null_share needs networks with a null class; pass network.with_null_class(). "
            f"Received: {', '.join(without)} without one"
        )
    for fact in ("image_shape", "num_classes"):
        values = {name: getattr(network, fact) for each in (networks, sparring) for name, network in each.items()}
        if len(set(values.values())) > 1:
            raise ValueError(f"All networks must have the same {fact}. Received: {values}")
    for (name, network), (other_name, other) in itertools.combinations(networks.items(), 2):
        if network is other:
            raise ValueError(f"{name!r} and {other_name!r} are the same network; give each name its own.")
        pairs = list(zip(network.weights, other.weights, strict=False))
        alike = [weight.shape for weight in network.weights] == [weight.shape for weight in other.weights]
        if alike and all(np.array_equal(*map(keras.ops.convert_to_numpy, pair)) for pair in pairs):
            warnings.warn(
                f"{name!r} and {other_name!r} have equal architecture and weights: each would learn from its own "
                "white-box examples, and the paper found that this diverges (5.5).",
                stacklevel=3,
            )


def check_callbacks(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Refuses callbacks that would fail after an epoch, or have no effect.

    Raises:
        ValueError: If there is one.
    """
    for callback in callbacks:
        for kind in type(callback).__mro__:
            if instead := _INSTEAD.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}"):
                raise ValueError(
                    f"{type(callback).__name__} does not work with CoTraining. {instead}. Received: {callback!r}"
                )


def checked_batch(images: Any, labels: Any, num_classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Checks a batch and returns it as float32 images in [0, 1] and int32 labels `[batch]` in `[0, num_classes)`.

    Raises:
        ValueError: While the step is traced, if a type or shape is wrong.
        tf.errors.InvalidArgumentError: In the step, if a value is out of range; see `naming_bad_values`.
    """
    images = tf.convert_to_tensor(images)
    if not images.dtype.is_floating:
        raise ValueError(
            "Images must be floats in [0, 1]; convert 8-bit images to float32 and divide them by 255. "
            f"Received: {images.dtype.name} of shape {images.shape}"
        )
    labels = labels if labels is None else tf.convert_to_tensor(labels)
    if labels is None or not labels.dtype.is_integer or labels.shape.rank not in (1, None):
        raise ValueError(
            f"{_ONE_LABEL_EACH} "
            f"Received: {'none' if labels is None else f'{labels.dtype.name} of shape {labels.shape}'}"
        )
    # If Keras traces a step again for labels of another shape, it leaves their rank open.
    images, labels = tf.cast(images, tf.float32), tf.ensure_shape(tf.cast(labels, tf.int32), [None])
    # NaN fails both comparisons.
    in_range = tf.reduce_all((images >= -_ROUNDING) & (images <= 1 + _ROUNDING))
    known = tf.reduce_all((labels >= 0) & (labels < num_classes))
    checks = [
        _check_values(in_range, "Images must be numbers in [0, 1]; divide 8-bit images by 255.", images),
        _check_values(known, f"Labels must be in [0, {num_classes}).", labels),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(images), tf.identity(labels)


def _check_values(condition: tf.Tensor, advice: str, values: tf.Tensor) -> tf.Operation:
    received = [tf.reduce_min(values), tf.reduce_max(values)]
    return tf.debugging.Assert(condition, [tf.strings.format(advice + " Received values from {} to {}", received)])


def check_finite(name: str, part: str, values: Sequence[tf.Tensor], step: tf.Tensor) -> tf.Operation:
    """Stops a step in which a part of a network's loss, or its gradient, is not a finite number."""
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(each)) for each in values])
    return tf.debugging.Assert(finite, [f"{part} of {name} {_NOT_FINITE}", step])


@contextlib.contextmanager
def naming_bad_values() -> Iterator[None]:
    """Turns the error of a failed check in a step into one that says what to do.

    Raises:
        ValueError: If images or labels were out of range.
        FloatingPointError: If a part of a loss, or its gradient, was not a finite number.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if out_of_range := re.search(_OUT_OF_RANGE, error.message):
            raise ValueError(out_of_range[0]) from None
        if other_rank := re.search(_OTHER_RANK, error.message):
            raise ValueError(f"{_ONE_LABEL_EACH} Received: integers of shape {other_rank[1]}") from None
        if not_finite := re.search(rf"(\w+ of .+? {_NOT_FINITE})\D*(\d+)", error.message):
            raise FloatingPointError(
                f"{not_finite[1]} {not_finite[2]}; that step updated nothing. Lower the learning rate, or check the "
                "data."
            ) from None
        raise
