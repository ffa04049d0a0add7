"""How clean and adversarial images go through a network with batch normalisation: together or apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import keras
import tensorflow as tf

from satm_tf.training.private_keras import all_layers

BatchNormMode = Literal["shared", "separate", "frozen", "auxiliary"]

# Each variable to change, by its identity, with its new value.
Written = dict[int, tuple[keras.Variable, tf.Tensor]]


class Passed(NamedTuple):
    """The result of passing batches through a network.

    Attributes:
        features: `[k, batch, size]`.
        logits: `[k, batch, classes]`.
        null: The log-odds of the null class, `[k, batch]`; None if the network has none.
        loss: A scalar, the layers' activity losses.
        updates: Variables, such as moving statistics and dropout's seeds, with their new values.
    """

    features: tf.Tensor
    logits: tf.Tensor
    null: tf.Tensor | None
    loss: tf.Tensor
    updates: list[tuple[keras.Variable, tf.Tensor]]


@contextlib.contextmanager
def _remembering(
    network: keras.Model, written: Written, counterparts: Sequence[tuple[keras.Variable, keras.Variable]]
) -> Iterator[keras.StatelessScope]:
    """Makes a network's variables hold the values that earlier passes wrote, and defers new writes likewise.

    A variable with a counterpart is read and written there.
    """
    place = {id(own): other for own, other in counterparts}
    places = [(variable, place.get(id(variable), variable)) for variable in network.variables]
    held = [
        (variable, written[id(target)][1] if id(target) in written else target.value)
        for variable, target in places
        if target is not variable or id(target) in written
    ]
    scope = keras.StatelessScope(held, collect_losses=True)
    before = [scope.get_current_value(variable) for variable, _ in places]
    with scope:
        yield scope
    for (variable, target), old in zip(places, before, strict=True):
        new = scope.get_current_value(variable)
        if new is not old:
            written[id(target)] = (target, new)


@contextlib.contextmanager
def batch_statistics(network: keras.Model, *, frozen: bool) -> Iterator[None]:
    """Makes batch normalisation use batch statistics; or moving statistics, without updating them.

    In either case, its scale and shift remain trainable.
    """
    layers = [layer for layer in batch_normalizations(network) if layer.trainable]
    for layer in layers:
        layer.trainable = not frozen
    try:
        yield
    finally:
        for layer in layers:
            layer.trainable = True


def batch_normalizations(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The batch normalisation layers of a network, at any depth."""
    return [layer for layer in all_layers(network) if isinstance(layer, keras.layers.BatchNormalization)]


def synchronize(network: keras.Model) -> None:
    """Makes batch normalisation compute its statistics over all replicas, if there are several.

    For good: the replicas of a step are traced in turns, and a temporary change would not reach all.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        for layer in batch_normalizations(network):
            layer.synchronized = True


def batch_norm_variables(network: keras.Model) -> list[keras.Variable]:
    """The variables that separate batch statistics add: scale, shift, moving mean and variance of each layer."""
    return [variable for layer in batch_normalizations(network) for variable in layer.weights]


def in_training_mode(network: keras.Model) -> Any:
    """The network in training mode for an attack: with dropout and batch statistics, but without side effects."""

    def call(images: tf.Tensor, training: bool = False) -> tf.Tensor:
        written: Written = {}
        with _distinct_dropout(network, written), _remembering(network, written, ()):
            return network(images, training=True)

    return call


# How a step's batches, the clean one first, are grouped into passes.
_GROUPS: dict[str, Callable[[list[tf.Tensor]], list[list[tf.Tensor]]]] = {
    "shared": lambda batches: [batches],
    "frozen": lambda batches: [batches],
    "separate": lambda batches: [[batch] for batch in batches],
    "auxiliary": lambda batches: [batches[:1], batches[1:]] if len(batches) > 1 else [batches],
}


def forward(
    network: Any,
    batches: Sequence[tf.Tensor],
    *,
    training: bool,
    mode: str = "shared",
    auxiliary: Sequence[tuple[keras.Variable, keras.Variable]] = (),
) -> Passed:
    """Passes k batches of equal size, the clean one first, through a network without changing its variables.

    Args:
        network: An `ImageClassifier`.
        batches: Images, float32 `[batch, height, width, 3]` each.
        training: Whether the network is in training mode; if not, the mode makes no difference.
        mode: As the scheme's `batch_norm`.
        auxiliary: For the mode "auxiliary", each batch normalisation variable with its counterpart.
    """
    groups = _GROUPS[mode](list(batches)) if training else [list(batches)]
    written: Written = {}
    outputs, losses = [], []
    with contextlib.ExitStack() as stack:
        if training:
            stack.enter_context(batch_statistics(network, frozen=mode == "frozen"))
            stack.enter_context(_distinct_dropout(network, written))
        for index, group in enumerate(groups):
            # Only "auxiliary" has some, for its second pass.
            with _remembering(network, written, auxiliary if index else ()) as scope:
                features = network.features(tf.concat(group, 0), training=training)
                outputs.append((features, *network.answers(features, training=training)))
            losses += [tf.cast(loss, tf.float32) for loss in scope.losses]
    every_features, every_logits, every_null = zip(*outputs, strict=True)
    features, logits = tf.concat(every_features, 0), tf.concat(every_logits, 0)
    null = None if every_null[0] is None else tf.concat(every_null, 0)
    return Passed(
        tf.reshape(features, [len(batches), -1, features.shape[-1]]),
        tf.reshape(logits, [len(batches), -1, logits.shape[-1]]),
        None if null is None else tf.reshape(null, [len(batches), -1]),
        tf.add_n(losses) / len(groups) if losses else tf.constant(0.0),
        list(written.values()),
    )


@contextlib.contextmanager
def _distinct_dropout(network: keras.Model, written: Written) -> Iterator[None]:
    """Makes dropout's seeds differ between replicas, which otherwise share one state and drop the same units."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        yield
        return
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    seeds = [variable for variable in network.variables if variable.name == "seed_generator_state"]
    offset = tf.cast(replica, tf.int64) * tf.constant([1_000_003, 0], tf.int64)
    for seed in seeds:
        written[id(seed)] = (seed, tf.convert_to_tensor(seed.value) + tf.cast(offset, seed.dtype))
    yield
    for seed in seeds:
        written[id(seed)] = (seed, written[id(seed)][1] - tf.cast(offset, seed.dtype))
