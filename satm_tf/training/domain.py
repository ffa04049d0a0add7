"""Domain adaptation: making a network's features of clean and of adversarial images alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from satm_tf.layers import GradientReversal


@dataclass(frozen=True, kw_only=True)
class DomainAdversarial:
    """Domain-adversarial adaptation: a binary classifier of clean against adversarial, behind a gradient reversal.

    Attributes:
        weight: r_da, the weight of the domain loss in the network's loss. Non-negative; at 1.0 without a schedule a
            network without batch normalisation was seen to collapse.
        strength: Strength of the gradient reversal: a constant, or "ganin" for `2 / (1 + exp(-10 p)) - 1` with p the
            share of the training that is done.
        hidden: Width of the first of the two fully-connected layers.

    Raises:
        ValueError: If a number is negative or the schedule is unknown.

    Example:
        >>> CoTraining(networks, attack=attack, domain_adaptation=DomainAdversarial(weight=0.1))

    Source:
        Section 4.2 of Liao (SATM); Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016.
    """

    weight: float = 0.1
    strength: float | str = "ganin"
    hidden: int = 256

    def __post_init__(self) -> None:
        known = self.strength == "ganin" if isinstance(self.strength, str) else self.strength >= 0
        if self.weight < 0 or self.hidden < 1 or not known:
            raise ValueError(
                "weight must be non-negative, hidden positive, and strength a non-negative number or 'ganin'. "
                f"Received: {self}"
            )

    def strength_at(self, progress: tf.Tensor) -> tf.Tensor:
        """The strength, float32, when the share `progress` in [0, 1] of the training is done."""
        if self.strength == "ganin":
            return 2.0 / (1.0 + tf.exp(-10.0 * tf.cast(progress, tf.float32))) - 1.0
        return tf.constant(self.strength, tf.float32)


@keras.saving.register_keras_serializable(package="satm_tf")
class DomainHead(keras.layers.Layer):
    """Two fully-connected layers behind a gradient reversal: features `[batch, size]` to one logit `[batch, 1]` each.

    A positive logit says "adversarial".

    Args:
        hidden: Width of the first layer.
    """

    def __init__(self, hidden: int = 256, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.hidden = hidden
        self.reversal = GradientReversal(name="reversal", dtype="float32")
        self.first = keras.layers.Dense(hidden, activation="relu", name="first", dtype="float32")
        self.second = keras.layers.Dense(1, name="second", dtype="float32")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.first.build(input_shape)
        self.second.build((None, self.hidden))

    def call(self, features: tf.Tensor, strength: tf.Tensor | float = 1.0) -> tf.Tensor:
        return self.second(self.first(self.reversal(features, strength=strength)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hidden": self.hidden}
