"""How clean and adversarial images go through a network with batch normalisation: together or apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf


class StandIn(NamedTuple):
    """What takes a variable's place for the length of a pass.

    Attributes:
        variable: The variable.
        value: What is read in its place; gradients flow to where this comes from.
        store: Takes what is written to it.
    """

    variable: keras.Variable
    value: tf.Tensor
    store: Callable[[tf.Tensor], Any]


@contextlib.contextmanager
def substituted(network: keras.Model, stand_ins: Sequence[StandIn]) -> Iterator[None]:
    """Within, some variables of a network have stand-ins; the others get what is written to them once this ends."""
    scope = keras.StatelessScope(state_mapping=[(each.variable, each.value) for each in stand_ins])
    before = {id(each.variable): scope.get_current_value(each.variable) for each in stand_ins}
    with scope:
        yield
    store = {id(each.variable): each.store for each in stand_ins}
    for variable in network.variables:
        value = scope.get_current_value(variable)
        if value is not None and value is not before.get(id(variable)):
            store.get(id(variable), variable.assign)(value)


@contextlib.contextmanager
def batch_statistics(network: keras.Model, *, frozen: bool) -> Iterator[None]:
    """Within, batch normalisation takes its statistics from all replicas; or uses the moving ones and leaves them.

    Frozen or not, its scale and shift go on training.
    """
    layers = [layer for layer in batch_normalizations(network) if layer.trainable]
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    before = [(layer, layer.synchronized) for layer in layers]
    for layer in layers:
        layer.trainable = not frozen
        layer.synchronized = layer.synchronized or several
    try:
        yield
    finally:
        for layer, synchronized in before:
            layer.trainable = True
            layer.synchronized = synchronized


def batch_normalizations(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The batch normalisation layers of a network, at any depth."""
    return [layer for layer in network._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def batch_norm_variables(network: keras.Model) -> list[keras.Variable]:
    """All that separate batch statistics have of their own: scale, shift, moving mean and variance of each layer."""
    return [variable for layer in batch_normalizations(network) for variable in layer.weights]


def in_training_mode(network: keras.Model) -> Any:
    """The network as an attack may see it in training mode: with dropout and batch statistics, but without a trace."""

    def call(images: tf.Tensor, training: bool = False) -> tf.Tensor:
        with keras.StatelessScope():
            return network(images, training=True)

    return call


# How a step's batches, the clean one first, are put together into passes.
_GROUPS: dict[str, Callable[[list[tf.Tensor]], list[list[tf.Tensor]]]] = {
    "shared": lambda batches: [batches],
    "frozen": lambda batches: [batches],
    "separate": lambda batches: [[batch] for batch in batches],
    "auxiliary": lambda batches: [batches[:1], batches[1:]] if len(batches) > 1 else [batches],
}
BATCH_NORM_MODES = tuple(_GROUPS)


def forward(
    network: Any,
    batches: Sequence[tf.Tensor],
    *,
    training: bool,
    mode: str = "shared",
    auxiliary: Sequence[tuple[keras.Variable, keras.Variable]] = (),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Features `[k, batch, size]` and logits `[k, batch, classes]` of k batches of equal size, the clean one first.

    Args:
        network: An `ImageClassifier`.
        batches: Images, float32 `[batch, height, width, 3]` each.
        training: Whether the network is in training mode; if not, the mode makes no difference.
        mode: "shared" (one pass, one set of batch statistics), "separate" (a pass each), "frozen" (moving statistics)
            or "auxiliary" (adversarial batches with batch normalisation of their own).
        auxiliary: For the mode "auxiliary", each batch normalisation variable with its counterpart.
    """
    groups = _GROUPS[mode](list(batches)) if training else [list(batches)]
    outputs = []
    for index, group in enumerate(groups):
        stand_ins = _distinct_dropout(network) if training else []
        if index:  # only "auxiliary" has any, for its second pass
            stand_ins += [StandIn(own, other.value, other.assign) for own, other in auxiliary]
        with contextlib.ExitStack() as stack:
            if training:
                stack.enter_context(batch_statistics(network, frozen=mode == "frozen"))
            if stand_ins:
                stack.enter_context(substituted(network, stand_ins))
            features = network.features(tf.concat(group, 0), training=training)
            outputs.append((features, network.classify(features, training=training)))
    features, logits = (tf.concat(parts, 0) for parts in zip(*outputs, strict=True))
    features = tf.reshape(features, [len(batches), -1, features.shape[-1]])
    return features, tf.reshape(logits, [len(batches), -1, logits.shape[-1]])


def _distinct_dropout(network: keras.Model) -> list[StandIn]:
    """Seeds that differ from replica to replica, where there are several: they hold one state and would drop alike."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return []
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group

    def stand_in(seed: keras.Variable) -> StandIn:
        offset = tf.cast(replica, seed.dtype) * tf.constant([1_000_003, 0], seed.dtype)
        return StandIn(seed, tf.convert_to_tensor(seed.value) + offset, lambda state: seed.assign(state - offset))

    return [stand_in(seed) for seed in network.variables if seed.name == "seed_generator_state"]
