from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.attacks.loops import iterate


class _Fibonacci(NamedTuple):
    value: tf.Tensor
    following: tf.Tensor


@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_a_named_state_passes_through_every_step(wrap):
    @wrap
    def run(limit):
        start = _Fibonacci(tf.constant(0), tf.constant(1))
        return iterate(lambda _, state: _Fibonacci(state.following, state.value + state.following), start, limit)

    values = [run(tf.constant(limit)).value.numpy() for limit in range(8)]
    np.testing.assert_array_equal(values, [0, 1, 1, 2, 3, 5, 8, 13])


@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_steps_are_counted_from_zero_and_end_early_when_finished(wrap):
    @wrap
    def run():
        return iterate(lambda index, total: total + index, tf.constant(0), 100, unfinished=lambda total: total < 10)

    assert run() == 0 + 1 + 2 + 3 + 4
