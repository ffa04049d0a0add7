"""Compares formats: size, speed, and accuracy on clean images and under attack."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.attacks import Attack
from satm_tf.configurable import look_up
from satm_tf.evaluation import compare_paired, wilson_interval
from satm_tf.evaluation.predictions import CLEAN
from satm_tf.models import ImageClassifier, load_model
from satm_tf.models.runtimes import Run, RuntimeModel
from satm_tf.serving.formats import FORMATS, convert
from satm_tf.storage import atomic_folder

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
    """Compares converted models with the original model, on clean and on adversarial images.

    The attack's examples are crafted on the model and shown to every network, because a converted one has no gradient.
    This shows whether quantisation weakens the defence. Losing the gradient does not make a network robust, so a
    gradient-free attack is also run on each network separately.

    Args:
        model: The classifier.
        files: The converted models by name, such as `convert` writes.
        images: float32 `[images, *model.image_shape]` in [0, 1], at least one.
        labels: int `[images]`.
        attack: Crafts on the model.
        query_attack: Crafts only from a network's answers, such as `SquareAttack`: on the model, whose examples are
            shown to all, and on each network separately; None leaves it out.
        batch_size: Number of images in a batch.

    Returns:
        A tidy frame, one row for each network (the first is "original") and attack ("clean", then the attacks' names):
        `format`, `attack`, `crafted_on` ("", "original" or "itself"), `images`, `accuracy` with its Wilson 95 %
        interval `low` and `high`, `change` (of the accuracy against the original's) and `worse` (whether the 95 %
        interval of that paired difference, as `evaluation.compare_paired` gives it, lies below 0), `agreement` (share
        of the same images put into the original's class), `megabytes`, and `milliseconds` for one image alone and
        `milliseconds_in_batch` for one of several. Read both rows of the query attack: the answers of 8-bit networks
        change in steps, which hinders a search on them, so a higher accuracy under a network's own search does not mean
        robustness.

    Raises:
        ValueError: If there are no images, or their number is not that of the labels.

    Example:
        >>> compare(network, {"int8": file}, images, labels, attack=PGD(epsilon=8 / 255)).query("worse")
    """
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    if not len(images) or len(images) != len(labels):
        raise ValueError(
            f"There must be at least one image, and a label for each. Received: {len(images)} images, {len(labels)} "
            "labels"
        )
    predict = tf.function(
        lambda batch: tf.nn.softmax(model(batch, training=False)), reduce_retracing=True, autograph=False
    )
    converted = {name: RuntimeModel(path) for name, path in files.items()}
    networks: dict[str, Run] = {_ORIGINAL: lambda batch: predict(tf.constant(batch)).numpy()}
    networks |= {name: runtime.run for name, runtime in converted.items()}
    sizes = {_ORIGINAL: sum(np.asarray(weight).nbytes for weight in model.weights)}
    sizes |= {name: Path(path).stat().st_size for name, path in files.items()}

    given = [attack] if query_attack is None else [attack, query_attack]
    crafted = {each.name: each.craft(model, images, labels, batch_size=batch_size) for each in given}
    rows: list[dict[str, Any]] = []
    original: dict[str, np.ndarray] = {}
    for name, network in networks.items():
        shown = [(CLEAN, "", images), *((attack, _ORIGINAL, batch) for attack, batch in crafted.items())]
        if query_attack is not None and name != _ORIGINAL:
            target = load_model(converted[name])
            own = query_attack.craft(target, images, labels, batch_size=batch_size)
            shown.append((query_attack.name, "itself", own))
        speed = {
            "milliseconds": _milliseconds(network, images[:1]),
            "milliseconds_in_batch": _milliseconds(network, images[:batch_size]),
        }
        for attack_name, source, batch in shown:
            predicted = _predict(network, batch, batch_size)
            correct = predicted == labels
            reference = original.setdefault(attack_name, predicted)
            low, high = wilson_interval(correct.sum(), len(correct))
            paired = compare_paired(reference == labels, correct)
            rows.append(
                {
                    "format": name,
                    "attack": attack_name,
                    "crafted_on": source,
                    "images": len(correct),
                    "accuracy": correct.mean(),
                    "low": low,
                    "high": high,
                    "change": paired.difference,
                    "worse": paired.high < 0,
                    "agreement": math.nan if source == "itself" else (predicted == reference).mean(),
                    "megabytes": sizes[name] / 1e6,
                    **speed,
                }
            )
    return pd.DataFrame(rows)


def convert_and_compare(
    model: ImageClassifier,
    folder: str | Path,
    formats: Sequence[str],
    *,
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    calibration: np.ndarray,
    **attacks: Any,
) -> pd.DataFrame:
    """Writes a model in other formats, with `comparison.csv` next to them, complete or not at all.

    Args:
        model: The classifier.
        folder: The folder to write, which must not exist.
        formats: Names from `FORMATS`.
        name: The prefix of the file names.
        images: As `compare` takes them; the first eight verify each conversion.
        labels: As `compare` takes them.
        calibration: Images for the formats that need some.
        **attacks: `attack` and `query_attack`, as `compare` takes them.

    Returns:
        The frame of `compare`.

    Raises:
        FileExistsError: If the folder exists.
        ValueError, VerificationError: As `convert` and `compare` do.
    """
    with atomic_folder(folder) as temporary:
        files = {}
        for each in formats:
            ranges = calibration if look_up("format", each, FORMATS).calibrated else None
            files[each] = convert(model, temporary / name, each, samples=images[:8], calibration=ranges)
        frame = compare(model, files, images, labels, **attacks)
        frame.to_csv(temporary / "comparison.csv", index=False)
    return frame


def _predict(network: Run, images: np.ndarray, batch_size: int) -> np.ndarray:
    starts = range(0, len(images), batch_size)
    return np.concatenate([network(images[start : start + batch_size]).argmax(-1) for start in starts])


def _milliseconds(network: Run, images: np.ndarray, repeats: int = 10) -> float:
    """Time per image, the median of several calls after a first one that is not counted."""
    network(images)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        network(images)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) / len(images) * 1e3
