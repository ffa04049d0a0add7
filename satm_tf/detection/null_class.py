"""The detector that a network is itself, where it was trained with a null class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from satm_tf.detection.base import Detector, Seen


@dataclass(frozen=True, kw_only=True)
class NullClass(Detector, name="null_class"):
    """The log-odds of the network's null class, which training taught it; only the threshold is fitted.

    Example:
        >>> trainer = CoTraining({"a": network.with_null_class()}, learns_from="itself", null_share=1.0)
        >>> detector = NullClass().fit(trainer.networks["a"], clean, adversarial, validation=validation)

    Source:
        Hosseini et al., "Blocking Transferability of Adversarial Examples in Black-Box Learning Systems", 2017.
    """

    def learn(self, clean: Seen, adversarial: Seen, seed: int) -> dict[str, np.ndarray]:
        if clean.null is None:
            raise ValueError(
                "This network has no null class; train network.with_null_class() with null_share, or choose another "
                "detector. Received: a network without one"
            )
        return {}

    def score(self, state: Mapping[str, tf.Tensor], seen: Seen) -> tf.Tensor:
        return seen.null
