"""The networks that attacks are made on: what they must give, and how one that gives something else says so."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from satm_tf.configurable import unknown_name

Model = Callable[..., tf.Tensor]


def logits_of(model: Model, images: tf.Tensor) -> tf.Tensor:
    """The float32 logits `[..., batch, classes]` of a network in inference mode.

    Raises:
        ValueError: If the last layer of a Keras model is a softmax, so that its outputs are no logits.
    """
    last = model
    while isinstance(last, keras.Model) and getattr(last, "outputs", None):
        last = last.layers[-1]
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        raise ValueError(
            "Attacks take a network that gives logits, and this one ends in a softmax. Wrap it: "
            f"models.FromProbabilities(model). Received: model={model.name!r}"  # type: ignore[attr-defined]
        )
    return tf.cast(model(images, training=False), tf.float32)


def at_step(model: Model, step: tf.Tensor) -> Model:
    """The network that an iterative attack uses at one of its steps: the model itself, unless it takes turns."""
    return model.at_step(step) if isinstance(model, InTurn) else model


class Ensemble:
    """Several networks as one, attacked at once.

    Args:
        networks: Networks to logits `[batch, classes]`, over the same classes.
        fuse: What is averaged: "logits" (the strongest in the paper), "probabilities" or "losses".

    Raises:
        ValueError: If there are no networks or `fuse` is unknown.

    Example:
        >>> MIFGSM(epsilon=16 / 256)(Ensemble([vgg, resnet]), images, labels)

    Source:
        Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, section 3.2; losses as Liu et al. 2017.
    """

    def __init__(self, networks: Sequence[Model], fuse: str = "logits"):
        _check_networks(networks)
        if fuse not in _FUSIONS:
            raise unknown_name("fusion", fuse, _FUSIONS)
        self.networks = tuple(networks)
        self.fuse = fuse

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The logits `[batch, classes]`, or `[networks, batch, classes]` where the losses are to be averaged."""
        return _FUSIONS[self.fuse](tf.stack([logits_of(network, images) for network in self.networks]))


class InTurn:
    """Several networks, of which an iterative attack uses the next at each of its steps.

    A step costs one network's gradient, not all of theirs. An attack that does not iterate takes the mean logits.

    Args:
        networks: Networks to logits `[batch, classes]`, over the same classes.

    Raises:
        ValueError: If there are no networks.

    Example:
        >>> PGD(epsilon=8 / 256, steps=20)(InTurn([vgg, resnet]), images, labels)
    """

    def __init__(self, networks: Sequence[Model]):
        _check_networks(networks)
        self.networks = tuple(networks)

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The mean logits `[batch, classes]`."""
        return Ensemble(self.networks)(images)

    def at_step(self, step: tf.Tensor) -> Model:
        """The network whose turn it is."""

        def network(images: tf.Tensor, training: bool = False) -> tf.Tensor:
            turns = [functools.partial(logits_of, network, images) for network in self.networks]
            return tf.switch_case(tf.convert_to_tensor(step) % len(turns), turns)

        return network


def _check_networks(networks: Sequence[Model]) -> None:
    if not networks:
        raise ValueError("An ensemble needs at least one network.")


_FUSIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "logits": lambda logits: tf.reduce_mean(logits, axis=0),
    # The softmax of the log of the mean probabilities is the mean probabilities again.
    "probabilities": lambda logits: tf.reduce_logsumexp(tf.nn.log_softmax(logits), axis=0),
    "losses": lambda logits: logits,
}
