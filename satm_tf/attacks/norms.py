"""The norms: length, steepest unit step, projection onto the ball, a random point in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

_AXES = (1, 2, 3)
_TINY = 1e-37


@dataclass(frozen=True)
class Norm:
    """One norm of the perturbation of an image. Perturbations are `[batch, height, width, channels]`.

    Attributes:
        length: Takes perturbations to their norms `[batch, 1, 1, 1]`.
        steepest: Takes gradients to the step of unit norm along which the loss rises fastest. A zero gradient gives a
            zero step.
        project: Takes `(perturbations, epsilon)` to the nearest perturbations of norm at most epsilon; epsilon is a
            scalar or `[batch, 1, 1, 1]`.
        random: Takes `(shape, seed)` to perturbations uniform in the unit ball.
    """

    length: Callable[[tf.Tensor], tf.Tensor]
    steepest: Callable[[tf.Tensor], tf.Tensor]
    project: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    random: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def _length_linf(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.abs(x), axis=_AXES, keepdims=True)


def _length_l2(x: tf.Tensor) -> tf.Tensor:
    # Scaled by the largest entry first: the squares of a tiny gradient would underflow to zero.
    largest = tf.maximum(_length_linf(x), _TINY)
    return largest * tf.sqrt(tf.reduce_sum(tf.square(x / largest), axis=_AXES, keepdims=True))


def _length_l0(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(_changed(x) > 0, tf.float32), axis=_AXES, keepdims=True)


def _unit_l2(x: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(x, _length_l2(x))


def _clip_linf(x: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(x, -epsilon, epsilon)


def _clip_l2(x: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    return x * tf.minimum(1.0, epsilon / tf.maximum(_length_l2(x), _TINY))


def _clip_l0(x: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    size = _changed(x)
    flat = tf.reshape(size, [tf.shape(x)[0], -1])
    # Sorting twice gives each pixel's rank in its image, the most changed first, with ties broken.
    places = tf.argsort(tf.argsort(flat, direction="DESCENDING", stable=True), stable=True)
    return tf.where(tf.cast(tf.reshape(places, tf.shape(size)), tf.float32) < epsilon, x, 0.0)


def _changed(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)


def _random_linf(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, -1.0, 1.0)


def _random_l2(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    shape = tf.convert_to_tensor(shape)
    direction = _unit_l2(tf.random.stateless_normal(shape, seed))
    share = tf.random.stateless_uniform([shape[0], 1, 1, 1], seed)
    return direction * share ** (1.0 / tf.cast(tf.reduce_prod(shape[1:]), tf.float32))


def _no_direction(*_: tf.Tensor) -> tf.Tensor:
    raise NotImplementedError("Norm 'l0' does not define a steepest step or a uniform random point.")


NORMS = {
    "linf": Norm(length=_length_linf, steepest=tf.sign, project=_clip_linf, random=_random_linf),
    "l2": Norm(length=_length_l2, steepest=_unit_l2, project=_clip_l2, random=_random_l2),
    # A pixel counts once, whichever of its channels changed; epsilon is a number of pixels.
    "l0": Norm(length=_length_l0, steepest=_no_direction, project=_clip_l0, random=_no_direction),
}
