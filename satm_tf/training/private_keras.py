"""Every use of private Keras APIs in this package, with its reason: check these when a new Keras fails."""

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
        """Does nothing: the model is already built."""


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """A model and its layers at any depth; Keras's public `layers` are those of the first level."""
    return list(model._flatten_layers())


def data_adapter(dataset: Any) -> Any:
    """A distributed data set in the form that `fit` takes: Keras 3.8 accepts it only in its own adapter."""
    return TFDatasetAdapter(dataset)


def count_step(optimizer: keras.optimizers.Optimizer) -> None:
    """Counts a batch as Keras does. The public `iterations` are fewer where gradients accumulate, and read-only."""
    optimizer._iterations.assign_add(1)


def sum_over_replicas(metric: keras.metrics.Metric) -> None:
    """Lets each replica update a metric's variables separately, to be summed on reading, as newer Keras does.

    In Keras 3.8 the replicas sum their totals at each step, so that old batches count more and more. Only a private
    attribute of a Keras variable can replace its TensorFlow variable.
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
