"""How well detectors work, and what rejecting costs and gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from satm_tf.detection.base import FittedDetector, in_batches, scikit_learn
from satm_tf.detection.guarded import Guarded
from satm_tf.models import ImageClassifier


class _Answers(NamedTuple):
    """The excess of the scores over the threshold, and the classes, the last of which is "rejected": `[images]`."""

    excess: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, guarded: Guarded, images: np.ndarray) -> _Answers:
        logits = in_batches(guarded, np.asarray(images, np.float32))
        return cls(logits[:, -1], logits.argmax(-1))


def measure(
    detectors: Mapping[str, FittedDetector],
    network: ImageClassifier,
    images: np.ndarray,
    labels: np.ndarray,
    adversarial: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    """Measures detectors of a network on clean images and on adversarial examples of them.

    Args:
        detectors: By name, each fitted to the network.
        network: The classifier.
        images: Clean images that no detector was fitted on, float32 `[images, *network.image_shape]` in [0, 1].
        labels: Their classes, int `[images]`.
        adversarial: Adversarial examples of them in the same order, by the name of the attack or of the rung. Those of
            an attacker who knows a detector are crafted on `Guarded(network, detector)`, and measure that one alone.

    Returns:
        A tidy frame, a row for each detector and name: `detector`, `attack`, `images`; `auc`, the area under the ROC
        curve of clean against adversarial; `clean_rejected` and `adversarial_rejected`, the shares above the threshold;
        `clean_accuracy`, where a rejected image counts as wrong; and `held`, the share of adversarial images that are
        classified correctly or rejected.

    Raises:
        ValueError: If there are no images, or not as many labels or adversarial examples.
        ImportError: If scikit-learn is missing.

    Example:
        >>> measure({"pca": detector}, network, images, labels, {"pgd": transferred}).set_index("attack").auc
    """
    labels = np.asarray(labels)
    counts = {"labels": len(labels), **{name: len(crafted) for name, crafted in adversarial.items()}}
    if not len(images) or set(counts.values()) != {len(images)}:
        raise ValueError(
            f"There must be a label and an adversarial example for each image. Received: {len(images)} images, and "
            f"{counts}"
        )
    area = scikit_learn("metrics").roc_auc_score
    rows = []
    for name, detector in detectors.items():
        guarded = Guarded(network, detector)
        clean = _Answers.of(guarded, images)
        for attack, crafted in adversarial.items():
            found = _Answers.of(guarded, crafted)
            scores = np.concatenate([clean.excess, found.excess])
            rows.append(
                {
                    "detector": name,
                    "attack": attack,
                    "images": len(labels),
                    "auc": area(np.repeat([0, 1], len(labels)), scores),
                    "clean_rejected": (clean.excess > 0).mean(),
                    "adversarial_rejected": (found.excess > 0).mean(),
                    "clean_accuracy": (clean.predicted == labels).mean(),
                    "held": ((found.predicted == labels) | (found.excess > 0)).mean(),
                }
            )
    return pd.DataFrame(rows)
