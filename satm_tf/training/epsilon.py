"""Schedules for the size of the perturbations in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from satm_tf.configurable import Configurable


@dataclass(frozen=True, kw_only=True)
class EpsilonSchedule(Configurable, kind="epsilon schedule"):
    """Which share of its full epsilon an attack uses in a training step; validation uses all of it."""

    ramps: ClassVar[bool] = False  # whether the shares depend on the progress of the training

    def share(self, progress: tf.Tensor, count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The shares of a batch of `count` images: a float32 scalar or `[count]`, in [0, 1].

        Args:
            progress: The share of the training that is done, in [0, 1].
            count: Number of images.
            seed: int32 `[2]`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define which share of epsilon to use: implement `share`."
        )


@dataclass(frozen=True, kw_only=True)
class UniformEpsilon(EpsilonSchedule, name="uniform"):
    """Draws the share of each image from `[low, 1)`, so that a network does not adapt to one size of perturbation.

    Attributes:
        low: The smallest share, in [0, 1].

    Raises:
        ValueError: If `low` is outside [0, 1].

    Example:
        >>> CoTraining(networks, attack=RandomisedStep(epsilon=16 / 256), epsilon_schedule=UniformEpsilon())

    Source:
        Kurakin et al., "Adversarial Machine Learning at Scale", ICLR 2017, Section 3, who draw it from a truncated
        normal distribution for the same reason.
    """

    low: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1:
            raise ValueError(f"low must be a share of epsilon, in [0, 1]. Received: low={self.low}")

    def share(self, progress: tf.Tensor, count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_uniform([count], seed, self.low, 1.0)


@dataclass(frozen=True, kw_only=True)
class RampedEpsilon(EpsilonSchedule, name="ramped"):
    """Lets the share grow linearly from `start` to 1 over the first part of the training.

    Attributes:
        over: The part of the training, in (0, 1], over which it grows.
        start: The share at the beginning, in [0, 1].

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> CoTraining(networks, attack=PGD(epsilon=8 / 256), epsilon_schedule=RampedEpsilon(over=0.3))
    """

    ramps: ClassVar[bool] = True

    over: float = 0.5
    start: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.over <= 1 and 0 <= self.start <= 1):
            raise ValueError(
                f"over must be in (0, 1], and start in [0, 1]. Received: over={self.over}, start={self.start}"
            )

    def share(self, progress: tf.Tensor, count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return self.start + (1.0 - self.start) * tf.minimum(progress / self.over, 1.0)
