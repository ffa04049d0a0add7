"""What the states of iterative attacks share: the loop, and the choice between two states, image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

State = TypeVar("State")


class Found(NamedTuple):
    """The images of a search so far, and whether each succeeds `[batch]`."""

    images: tf.Tensor
    success: tf.Tensor


def iterate(
    step: Callable[[tf.Tensor, State], State],
    state: State,
    limit: int | tf.Tensor,
    unfinished: Callable[[State], tf.Tensor] | None = None,
) -> State:
    """Applies a step to a state repeatedly in a `tf.while_loop`, so that tracing time does not depend on the steps.

    Args:
        step: Takes the number of steps so far and a state to the next state, of the same structure.
        state: The first state: a tensor, or a tuple of tensors or of such tuples.
        limit: The largest number of steps.
        unfinished: Whether a state needs another step; None always takes `limit` steps.

    Example:
        >>> iterate(lambda index, total: total + index, tf.constant(0), limit=4)
        <tf.Tensor: shape=(), dtype=int32, numpy=6>
    """

    def more(index: tf.Tensor, state: State) -> tf.Tensor:
        return index < limit if unfinished is None else (index < limit) & unfinished(state)

    return tf.while_loop(more, lambda index, state: (index + 1, step(index, state)), (0, state))[1]


def select(flags: tf.Tensor, chosen: State, other: State) -> State:
    """One state for the images whose flag `[batch]` is true, another of the same structure for the rest."""

    def pick(first: Any, second: Any) -> tf.Tensor:
        return tf.where(tf.reshape(flags, [-1] + [1] * (len(first.shape) - 1)), first, second)

    return tf.nest.map_structure(pick, chosen, other)


def per_image(values: tf.Tensor) -> tf.Tensor:
    """A number for each image, `[batch]`, in the shape that goes with images, `[batch, 1, 1, 1]`."""
    return tf.reshape(values, [-1, 1, 1, 1])
