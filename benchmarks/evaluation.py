"""What a transfer matrix costs: crafts and predictions, counted and by formula, and its file of predictions.

    python benchmarks/evaluation.py [--networks 4 8 16 32] [--images 200] [--batch 50]

Every network is source and target. With B batches, S sources, T targets and R pairs of attack and epsilon there are
B R S crafts of a batch, and B T (1 + R S) predictions of one, those of clean images included. Networks are tiny, so the
seconds are those of tracing and bookkeeping; compare them within one run.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.attacks import FGSM, Attack
from satm_tf.evaluation import Predictions, label_leaking, measure
from satm_tf.evaluation.predictions import CLEAN, Cell

SHAPE, CLASSES, EPSILONS = (8, 8, 3), 8, (0.05, 0.1)
COUNTS: Counter[str] = Counter()


def counted(what: str, tensor: tf.Tensor) -> tf.Tensor:
    """The tensor; each time it is computed counts."""
    with tf.control_dependencies([tf.py_function(lambda: COUNTS.update([what]), [], [])]):
        return tf.identity(tensor)


class Counted(FGSM):
    """FGSM that counts the batches that it crafts."""

    def perturb(self, *arguments: Any) -> tf.Tensor:
        return counted("crafts", super().perturb(*arguments))


class Source:
    """A linear network."""

    num_classes = CLASSES

    def __init__(self, seed: int):
        self.weights = tf.random.stateless_normal([int(np.prod(SHAPE)), CLASSES], [seed, 0])

    def __call__(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return tf.reshape(images, [-1, self.weights.shape[0]]) @ self.weights


class Target(Source):
    """The same network, which counts the batches that it classifies."""

    def __call__(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return counted("predictions", super().__call__(images))


class Watched(io.FileIO):
    """A file that counts the bytes read from it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(-1 if size is None else size)
        self.count += len(found)
        return found


def seconds(function: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    found = function()
    return time.perf_counter() - began, found


def matrices(networks: list[int], images: int, batch: int) -> None:
    """Prints the cost of a matrix of so many networks."""
    generator = np.random.default_rng(0)
    pixels = generator.uniform(size=(images, *SHAPE)).astype(np.float32)
    labels = generator.integers(0, CLASSES, images).astype(np.int32)
    dataset = tf.data.Dataset.from_tensor_slices((pixels, labels)).batch(batch)
    attacks: dict[str, Attack] = {"one": Counted(epsilon=EPSILONS[0]), "several": Counted(epsilon=EPSILONS[0])}
    radii = 1 + len(EPSILONS)
    print("networks      crafts  (formula) predictions  (formula)  seconds  times the first: seconds, predictions")
    first: tuple[float, int] | None = None
    for count in networks:
        COUNTS.clear()
        names = [f"network {index}" for index in range(count)]
        took, _ = seconds(
            lambda names=names: measure(
                sources={name: Source(seed) for seed, name in enumerate(names)},
                targets={name: Target(seed) for seed, name in enumerate(names)},
                dataset=dataset,
                attacks=attacks,
                epsilons={"several": EPSILONS},
            )
        )
        batches = len(dataset)
        crafts, predictions = batches * radii * count, batches * count * (1 + radii * count)
        first = first or (took, COUNTS["predictions"])
        print(
            f"{count:8} {COUNTS['crafts']:11,} {crafts:10,} {COUNTS['predictions']:11,} {predictions:10,} {took:8.1f}"
            f" {took / first[0]:24.1f} {COUNTS['predictions'] / first[1]:12.1f}"
        )


def file_of(sources: int, attacks: int, images: int, folder: Path) -> None:
    """Prints the size of the file of a matrix, and how much of it is read for one source."""
    names = [f"scheme/network_{index}" for index in range(sources)]
    cells = [Cell(CLEAN, 0.0, "", target) for target in names]
    cells += [Cell(f"a{a}", 0.1, source, target) for a in range(attacks) for source in names for target in names]
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, images).astype(np.int32)
    rates = generator.uniform(size=[len(cells), 1])
    guesses = generator.integers(0, CLASSES, [len(cells), images])
    predicted = np.where(generator.uniform(size=guesses.shape) < rates, labels, guesses).astype(np.uint8)
    predictions, path = Predictions(pd.DataFrame(cells), predicted, labels, CLASSES), folder / "predictions.npz"
    saving, _ = seconds(lambda: predictions.save(path))
    size = path.stat().st_size
    print(f"\n{len(cells)} cells of {images:,} images, {CLASSES} classes, random errors: {predicted.nbytes:,} bytes")
    print(f"predictions.npz    {size:11,} bytes, written in {saving:.2f} s")
    for what, chosen in (("all of it", None), ("one source's part", names[:1])):
        with Watched(path) as file:
            reading, _ = seconds(lambda file=file, chosen=chosen: Predictions.load(file, chosen))
            print(f"{what:18} {file.count:11,} bytes, {file.count / size:.1%}, read in {reading:.2f} s")
    for what, view in (("accuracies", predictions.frame), ("label leaking", lambda: label_leaking(predictions))):
        print(f"{what:18} {seconds(view)[0]:11.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=50)
    options = parser.parse_args()
    matrices(options.networks, options.images, options.batch)
    with tempfile.TemporaryDirectory() as folder:
        file_of(sources=10, attacks=5, images=10_000, folder=Path(folder))


if __name__ == "__main__":
    main()
