"""A separate optimizer for each network, all with the same learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf.training.private_keras import all_layers, copy_weight_decay_exclusions, moving_averages


class NetworkOptimizer:
    """A copy of an optimizer for one network, which scales the loss if the network computes in float16.

    The copy uses the learning rate of the original, whose `iterations` count all steps, including those that loss
    scaling skips here. Its clipping thresholds apply to the whole gradient, whatever the number of replicas.
    """

    def __init__(self, original: keras.optimizers.Optimizer, variables: Sequence[Any], half_precision: bool, name: str):
        self.replicas = tf.distribute.get_strategy().num_replicas_in_sync
        config = {**original.get_config(), "name": name, "learning_rate": lambda: original.learning_rate}
        clips = [key for key in ("clipnorm", "clipvalue", "global_clipnorm") if config.get(key) is not None]
        # Keras clips each replica's share and then sums: equal shares of the threshold add up to the whole.
        config.update({key: config[key] / self.replicas for key in clips})
        self.optimizer = type(original).from_config(config)
        copy_weight_decay_exclusions(original, self.optimizer)
        self.scales = half_precision
        if half_precision:
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer, name=f"{name}_loss_scale")
        self.variables = list(variables)
        self.optimizer.build(self.variables)
        # Clipping and the check for infinities need the whole gradient, not one replica's share.
        self._reduce_first = self.replicas > 1 and bool(clips or half_precision)

    def scale(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss to differentiate."""
        return self.optimizer.scale_loss(loss)

    def apply(self, gradients: Sequence[tf.Tensor | None]) -> None:
        """Updates the variables by the sum over the replicas of these gradients of the scaled loss."""
        if self._reduce_first:
            shares = [each for each in gradients if each is not None]
            whole = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, shares))
            gradients = [each if each is None else next(whole) / self.replicas for each in gradients]
        self.optimizer.apply(gradients, self.variables)

    def finalize(self) -> None:
        """Replaces the weights by their moving averages, if the optimizer keeps any."""
        self.optimizer.finalize_variable_values(self.variables)


class AveragedWeights:
    """Replaces weights by their moving averages, where optimizers keep any, while the networks are evaluated."""

    def __init__(self, optimizers: Sequence[NetworkOptimizer]):
        self._pairs = [pair for each in optimizers for pair in moving_averages(each.optimizer)]
        self._weights: list[np.ndarray] = []

    def put_in(self) -> None:
        """Applies the averages, if they are not applied yet."""
        if not self._weights:
            # Copies: NumPy shares the memory of a variable on a CPU.
            self._weights = [np.array(keras.ops.convert_to_numpy(variable)) for variable, _ in self._pairs]
            for variable, average in self._pairs:
                variable.assign(average)

    def take_out(self) -> None:
        """Restores the weights, to the bit, if the averages are applied."""
        for (variable, _), weights in zip(self._pairs, self._weights, strict=False):
            variable.assign(weights)
        self._weights = []


def in_half_precision(network: keras.Model) -> bool:
    """Whether any layer computes in float16, whose gradients underflow unless the loss is scaled."""
    return any(layer.compute_dtype == "float16" for layer in all_layers(network))
