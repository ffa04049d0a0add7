"""The loop that iterative attacks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

State = TypeVar("State")


def iterate(
    step: Callable[[tf.Tensor, State], State],
    state: State,
    limit: int | tf.Tensor,
    unfinished: Callable[[State], tf.Tensor] | None = None,
) -> State:
    """Applies a step to a state repeatedly in a `tf.while_loop`, so that tracing time does not depend on the steps.

    Args:
        step: A function of the number of steps so far and a state that returns the next state, of the same structure.
        state: The first state: a tensor, or a NamedTuple of tensors.
        limit: The largest number of steps.
        unfinished: A function of a state that returns whether another step is needed; None always takes `limit` steps.

    Returns:
        The last state.

    Example:
        >>> iterate(lambda index, total: total + index, tf.constant(0), limit=4)
        <tf.Tensor: shape=(), dtype=int32, numpy=6>
    """

    def more(index: tf.Tensor, state: State) -> tf.Tensor:
        return index < limit if unfinished is None else (index < limit) & unfinished(state)

    return tf.while_loop(more, lambda index, state: (index + 1, step(index, state)), (0, state))[1]
