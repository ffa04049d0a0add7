"""Every use of private Keras in this package, each with its reason: what to look at when a new Keras fails."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers.data_adapters.tf_dataset_adapter import TFDatasetAdapter

_WEIGHT_DECAY_EXCLUSIONS = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")


class BuiltBeforehand(keras.Model):
    """A model that `fit` does not try to build, because its constructor has built it.

    Under `MultiWorkerMirroredStrategy` Keras reduces a distributed batch eagerly to build a model, which fails.
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing is left to build."""


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """A model and its layers at any depth; Keras's public `layers` are those of the first level."""
    return list(model._flatten_layers())


def data_adapter(dataset: Any) -> Any:
    """A distributed data set in the form that `fit` takes: Keras 3.8 knows it only in an adapter of its own."""
    return TFDatasetAdapter(dataset)


def count_step(optimizer: keras.optimizers.Optimizer) -> None:
    """Counts a batch as Keras does. The public `iterations` are fewer where gradients accumulate, and read-only."""
    optimizer._iterations.assign_add(1)


def sum_over_replicas(metric: keras.metrics.Metric) -> None:
    """Lets each replica add to a metric's variables by itself, to be summed when they are read, as newer Keras does.

    With Keras 3.8 the replicas add up at each step what they had counted until then, and old batches weigh ever more.
    A Keras variable takes another TensorFlow variable only by its private attribute.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return
    for variable in metric.variables:
        if variable.value.synchronization != tf.VariableSynchronization.ON_READ:
            variable._value = tf.Variable(
                tf.zeros(variable.shape, variable.dtype),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[tuple[keras.Variable, keras.Variable]]:
    """The variables of which an optimizer keeps moving averages, and these; Keras reads them in its own callback."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not optimizer.use_ema:
        return []
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))


def copy_weight_decay_exclusions(original: keras.optimizers.Optimizer, copy: keras.optimizers.Optimizer) -> None:
    """Excludes from a copy's weight decay what the original excludes, which an optimizer's config leaves out."""
    for name in _WEIGHT_DECAY_EXCLUSIONS:
        if hasattr(original, name):
            setattr(copy, name, getattr(original, name))
