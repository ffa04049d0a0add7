"""Networks and images that the tests of the attacks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf


def _network(seed: int, **layer: Any) -> keras.Model:
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [
            keras.Input([8, 8, 3]),
            keras.layers.Conv2D(8, 3, activation="tanh", **layer),
            keras.layers.BatchNormalization(**layer),
            keras.layers.Conv2D(8, 3, activation="tanh", **layer),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(5, **layer),
        ]
    )
    # Weights large enough for the gradient to turn within a ball of 0.1: else one step and ten give the same.
    for convolution in (network.layers[0], network.layers[2]):
        convolution.kernel.assign(4 * convolution.kernel)
    # Moving statistics that differ from a batch's own: an attack in training mode would show.
    normalisation = network.layers[1]
    normalisation.moving_mean.assign(np.linspace(-0.5, 0.5, 8))
    normalisation.moving_variance.assign(np.linspace(0.5, 2.0, 8))
    return network


@pytest.fixture(scope="session")
def make_network() -> Callable[..., keras.Model]:
    """A small smooth network with batch normalisation and dropout from a seed, `[batch, 8, 8, 3]` to five logits."""
    return _network


@pytest.fixture(scope="session")
def network() -> keras.Model:
    return _network(1)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Seven images that reach both ends of the pixel range."""
    uniform = np.random.default_rng(2).uniform(-0.2, 1.2, [7, 8, 8, 3])
    return _read_only(np.clip(uniform, 0, 1).astype("float32"))


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    return _read_only(np.array([0, 1, 2, 3, 4, 0, 1], "int32"))


@pytest.fixture
def state_of() -> Callable[[keras.Model], list[np.ndarray]]:
    """Copies everything that a network remembers: weights, moving statistics, the states of dropout's seeds."""

    def copy(model: keras.Model) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]

    return copy


@pytest.fixture(scope="session")
def linear() -> keras.Model:
    """A linear network of four classes, where the smallest perturbations are known in closed form."""
    network = keras.Sequential([keras.Input([8, 8, 3]), keras.layers.Flatten(), keras.layers.Dense(4)])
    generator = np.random.default_rng(6)
    kernel = generator.normal(size=[192, 4]) / 8
    network.layers[-1].kernel.assign(kernel)
    # Grey images then fall into all classes.
    network.layers[-1].bias.assign(-kernel.sum(0) / 2)
    return network


@pytest.fixture
def grey() -> np.ndarray:
    """Six images so far from the ends of the pixel range that no bound matters to a small perturbation."""
    return np.random.default_rng(3).uniform(0.3, 0.7, [6, 8, 8, 3]).astype("float32")


def operations_that_run(graph: tf.Graph) -> set[str]:
    """The kinds of all operations that the outputs of a graph depend on; TensorFlow prunes the rest.

    The bodies of loops and branches are gone through in the same way.
    """
    found, waiting, kinds = set(), [tensor.op for tensor in graph.outputs], set()
    while waiting:
        operation = waiting.pop()
        if operation in found:
            continue
        found.add(operation)
        kinds.add(operation.type)
        waiting += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
        inner = [
            operation.get_attr(name)
            for name in ("cond", "body", "then_branch", "else_branch")
            if name in operation.node_def.attr
        ]
        for function in inner:
            kinds |= operations_that_run(graph._get_function(function.name).graph)
    return kinds
