"""What another format costs: size, speed, and the accuracy under attack that the model was trained for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.attacks import Attack
from satm_tf.evaluation import wilson_interval
from satm_tf.evaluation.transfer import CLEAN
from satm_tf.models import FromProbabilities, ImageClassifier
from satm_tf.serving.formats import Network, load

_ORIGINAL = "original"


def compare(
    model: ImageClassifier,
    files: Mapping[str, str | Path],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    attack: Attack,
    query_attack: Attack | None = None,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Measures converted models beside the model that they were made of, on clean and on adversarial images.

    The attack's examples are crafted on the model and shown to all: a converted network has no gradient to follow, and
    quantising must not quietly undo the defence. That its gradient is gone makes no network robust: an attack that
    needs none is run on each by itself too.

    Args:
        model: The classifier.
        files: The converted models by name, such as `convert` writes.
        images: float32 `[images, *model.image_shape]` in [0, 1], at least one.
        labels: int `[images]`.
        attack: Crafts on the model.
        query_attack: Crafts from a network's answers alone, such as `SquareAttack`: on the model, whose examples are
            shown to all, and on each network by itself; None leaves it out.
        batch_size: Images at once.

    Returns:
        A tidy frame, one row for each network (the first is "original") and attack ("clean", then the attacks' names):
        `format`, `attack`, `crafted_on` ("", "original" or "itself"), `images`, `accuracy` with its Wilson
        95 % interval `low` and `high`, `change` (of the rate against the original's) and `worse` (whether it fell by
        more than the 95 % interval of a paired difference), `agreement` (share of the same images put into the
        original's class), `megabytes`, and `milliseconds` for one image alone and `milliseconds_in_batch` for one of
        several. Look at both rows of the query attack: the answers of eight-bit networks change in steps, which
        starves a search on them, and where they do better on its examples than on the original's that is all it is.

    Raises:
        ValueError: If there are no images, or their number is not that of the labels.

    Example:
        >>> compare(network, {"int8": file}, images, labels, attack=PGD(epsilon=8 / 255)).query("worse")
    """
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    if not len(images) or len(images) != len(labels):
        raise ValueError(
            f"There must be a label for each image, and an image. Received: {len(images)} images, {len(labels)} labels"
        )
    predict = tf.function(lambda batch: tf.nn.softmax(model(batch, training=False)), reduce_retracing=True)
    networks: dict[str, Network] = {_ORIGINAL: lambda batch: predict(tf.constant(batch)).numpy()}
    networks |= {name: load(path) for name, path in files.items()}
    sizes = {_ORIGINAL: sum(np.asarray(weight).nbytes for weight in model.weights)}
    sizes |= {name: Path(path).stat().st_size for name, path in files.items()}

    given = [attack] if query_attack is None else [attack, query_attack]
    crafted = {each.name: each.craft(model, images, labels, batch_size=batch_size) for each in given}
    rows: list[dict[str, Any]] = []
    original: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, network in networks.items():
        shown = [(CLEAN, "", images), *((attack, _ORIGINAL, batch) for attack, batch in crafted.items())]
        if query_attack is not None and name != _ORIGINAL:
            own = query_attack.craft(_as_model(network, model.num_classes), images, labels, batch_size=batch_size)
            shown.append((query_attack.name, "itself", own))
        speed = {
            "milliseconds": _milliseconds(network, images[:1]),
            "milliseconds_in_batch": _milliseconds(network, images[:batch_size]),
        }
        for attack_name, source, batch in shown:
            predicted = _predict(network, batch, batch_size)
            right = predicted == labels
            first = original.setdefault(attack_name, (right, predicted))
            low, high = wilson_interval(right.sum(), len(right))
            rows.append(
                {
                    "format": name,
                    "attack": attack_name,
                    "crafted_on": source,
                    "images": len(right),
                    "accuracy": right.mean(),
                    "low": low,
                    "high": high,
                    "change": right.mean() - first[0].mean(),
                    "worse": _worse(first[0], right),
                    "agreement": math.nan if source == "itself" else (predicted == first[1]).mean(),
                    "megabytes": sizes[name] / 1e6,
                    **speed,
                }
            )
    return pd.DataFrame(rows)


def _as_model(network: Network, num_classes: int) -> Any:
    """A converted network as attacks take one: within the graph, giving logits."""

    def call(images: tf.Tensor, training: bool = False) -> tf.Tensor:
        probabilities = tf.numpy_function(network, [images], tf.float32)
        return tf.ensure_shape(probabilities, [images.shape[0], num_classes])

    return FromProbabilities(call)


def _predict(network: Network, images: np.ndarray, batch_size: int) -> np.ndarray:
    starts = range(0, len(images), batch_size)
    return np.concatenate([network(images[start : start + batch_size]).argmax(-1) for start in starts])


def _worse(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a share fell, on the same images, by more than 1.96 standard errors of the paired difference."""
    lost, won, count = int((before & ~after).sum()), int((~before & after).sum()), len(before)
    return lost - won > 1.96 * math.sqrt(lost + won - (lost - won) ** 2 / count)


def _milliseconds(network: Network, images: np.ndarray, repeats: int = 10) -> float:
    """For one image, the median of some calls after a first that is not counted."""
    network(images)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        network(images)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) / len(images) * 1e3
