"""The networks that attacks craft on: models that return logits, alone or combined."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from satm_tf.configurable import look_up

Model = Callable[..., tf.Tensor]

_PROBES = 4
_GIVE_LOGITS: weakref.WeakSet[Any] = weakref.WeakSet()


def logits_of(model: Model, images: tf.Tensor) -> tf.Tensor:
    """The float32 logits `[..., batch, classes]` of a network in inference mode.

    Raises:
        ValueError: If the last layer of a Keras model is a softmax, so that its outputs are not logits.
    """
    last = model
    while isinstance(last, keras.Model) and getattr(last, "outputs", None):
        last = last.layers[-1]
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        raise _gives_probabilities(model)
    return tf.cast(model(images, training=False), tf.float32)


@tf.autograph.experimental.do_not_convert
def refuse_probabilities(model: Model, shape: tf.TensorShape) -> None:
    """Refuses a network whose outputs are probabilities, whatever its layers are.

    The network is probed once, eagerly, with a few noise images, so that a traced step costs nothing. It is not probed
    if it has `gives_logits = True`, if the image size is not static, or inside a replica of a `tf.distribute` strategy.

    Of an `Ensemble` each network is probed. The shape is that of images, `[batch, height, width, channels]`.

    Raises:
        ValueError: If its outputs are non-negative and sum to one.
    """
    if isinstance(model, Ensemble):
        for network in model.networks:
            refuse_probabilities(network, shape)
        return
    known = getattr(model, "gives_logits", False)
    with contextlib.suppress(TypeError):  # A model without a hash or weak references is probed each time.
        known = known or model in _GIVE_LOGITS
    replica = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    if known or replica or not shape[1:].is_fully_defined():
        return
    with tf.init_scope():
        if not tf.executing_eagerly():
            return
        noise = tf.random.stateless_uniform([_PROBES, *shape[1:]], seed=[0, 0])
        try:
            answers = tf.convert_to_tensor(model(noise, training=False))
        except (ValueError, tf.errors.OpError):
            # If the model is at fault, the attack's own call raises the clearer error.
            return
        totals = tf.reduce_sum(tf.cast(answers, tf.float32), axis=-1)
        # Half precision rounds each of many probabilities.
        tolerance = 1e-3 if answers.dtype.size >= 4 else 1e-2
        if tf.reduce_all(answers >= 0) and tf.reduce_all(tf.abs(totals - 1) <= tolerance):
            raise _gives_probabilities(model)
    with contextlib.suppress(TypeError):
        _GIVE_LOGITS.add(model)


def _gives_probabilities(model: Model) -> ValueError:
    return ValueError(
        "Attacks need a network that returns logits, but this one returns probabilities. Wrap it: "
        "satm_tf.models.FromProbabilities(model); or set `model.gives_logits = True` if they are logits. "
        f"Received: {getattr(model, 'name', model)!r}"
    )


def at_step(model: Model, step: tf.Tensor) -> Model:
    """The network that an iterative attack uses at a step: the model itself, unless networks take turns."""
    return model.at_step(step) if isinstance(model, InTurn) else model


class Ensemble:
    """Several networks as one, attacked at once.

    Args:
        networks: Networks that return logits `[batch, classes]`, for the same classes.
        fuse: What is averaged: "logits" (the strongest in the paper), "probabilities" or "losses".

    Raises:
        ValueError: If there are no networks or `fuse` is unknown.

    Example:
        >>> MIFGSM(epsilon=16 / 256)(Ensemble([vgg, resnet]), images, labels)

    Source:
        Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, section 3.2; losses as Liu et al. 2017.
    """

    def __init__(self, networks: Sequence[Model], fuse: str = "logits"):
        if not networks:
            raise ValueError("An ensemble needs at least one network.")
        look_up("fusion", fuse, _FUSIONS)
        self.networks = tuple(networks)
        self.fuse = fuse

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The logits `[batch, classes]`, or `[networks, batch, classes]` if the losses are averaged."""
        return _FUSIONS[self.fuse](tf.stack([logits_of(network, images) for network in self.networks]))


class InTurn(Ensemble):
    """Several networks, of which an iterative attack uses the next at each of its steps.

    A step costs one network's gradient, not all of theirs. An attack that does not iterate takes the mean logits.

    Args:
        networks: Networks that return logits `[batch, classes]`, for the same classes.

    Raises:
        ValueError: If there are no networks.

    Example:
        >>> PGD(epsilon=8 / 256, steps=20)(InTurn([vgg, resnet]), images, labels)
    """

    def __init__(self, networks: Sequence[Model]):
        super().__init__(networks)

    def at_step(self, step: tf.Tensor) -> Model:
        """The network whose turn it is."""

        def network(images: tf.Tensor, training: bool = False) -> tf.Tensor:
            turns = [functools.partial(logits_of, network, images) for network in self.networks]
            return tf.switch_case(tf.convert_to_tensor(step) % len(turns), turns)

        return network


_FUSIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "logits": lambda logits: tf.reduce_mean(logits, axis=0),
    # The softmax of the log of the mean probabilities is the mean probabilities again.
    "probabilities": lambda logits: tf.reduce_logsumexp(tf.nn.log_softmax(logits), axis=0),
    "losses": lambda logits: logits,
}
