"""Earlier states of networks in a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class Recalled:
    """Earlier weights of a network, and the network with them: a source without a second network.

    Args:
        network: The network, with its current weights.
        slots: How many sets of weights are remembered.
        new_weight: Makes a variable from its name, shape, dtype and value, as part of what is saved.
        name: Prefix of the variables' names.
    """

    def __init__(self, network: keras.Model, slots: int, new_weight: Callable[..., keras.Variable], name: str):
        self.network = network
        self.slots = slots
        self._kept = [
            new_weight(f"{name}_{index}", tf.stack([tf.convert_to_tensor(weight.value)] * slots))
            for index, weight in enumerate(network.weights)
        ]

    def weights_at(self, slot: tf.Tensor | int) -> list[tf.Tensor]:
        """One of the sets of weights, in the order of the network's."""
        return [kept.value[slot] for kept in self._kept]

    def at(self, slot: tf.Tensor | int) -> Callable[..., tf.Tensor]:
        """The network with one of the sets of weights, in inference mode."""
        held = list(zip(self.network.weights, self.weights_at(slot), strict=True))

        def call(images: tf.Tensor, training: bool = False) -> Any:
            with keras.StatelessScope(state_mapping=held):
                return self.network(images, training=False)

        call.gives_logits = True  # type: ignore[attr-defined]  # It cannot be probed, and the network is known.
        return call

    def remember(self, step: tf.Tensor, every: int) -> None:
        """After every `every` steps, replaces the oldest weights by the current ones; `step` are taken."""

        def replace() -> tf.Operation:
            slot = tf.cast((step // every) % self.slots, tf.int32)
            return tf.group(
                *(
                    kept.value.assign(tf.tensor_scatter_nd_update(kept.value, [[slot]], own.value[None]))
                    for own, kept in zip(self.network.weights, self._kept, strict=True)
                )
            )

        tf.cond(step % every == 0, replace, tf.no_op)
