"""Seconds of an epoch with PGD-10 from two frozen networks: crafted in each step, and crafted once before training.

    python benchmarks/crafted_once.py [--images 2000] [--copies 2] [--epochs 3] [--size 28]

Both train a compact ResNet as the scheme `pubdef` does, on the same noise. The fastest epoch of each counts, without
the first, which traces; crafting is measured separately, including tracing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from satm_tf import CoTraining, ImageClassifier, attacks, data

CLASSES, BATCH, RATE, EPSILON = 10, 128, 1e-3, 8 / 255
SOURCES = ("compact_vgg", "compact_inception")


class Clock(keras.callbacks.Callback):
    """The seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def make_trainer(size: int, copies: int, folder: str) -> CoTraining:
    keras.utils.set_random_seed(0)
    networks = {
        name: ImageClassifier.from_backbone(name, num_classes=CLASSES, image_shape=(size, size, 3))
        for name in ("compact_resnet", *SOURCES)
    }
    trainer = CoTraining(
        {"compact_resnet": networks["compact_resnet"]},
        "pubdef",
        frozen={name: networks[name] for name in SOURCES},
        attack=attacks.PGD(epsilon=EPSILON, steps=10),
        crafted_once=copies,
        crafted_folder=folder,
    )
    trainer.compile(keras.optimizers.Adam(RATE))
    return trainer


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--copies", type=int, default=2)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--size", type=int, default=28)
    given = options.parse_args()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (given.images, given.size, given.size, 3), dtype=np.uint8)
    examples = data.Examples(labels=rng.integers(0, CLASSES, given.images), images=pixels)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, copies in (("afresh", 0), ("once", given.copies)):
            train = data.batches(examples, image_size=given.size, batch_size=BATCH, shuffle=True, drop_remainder=True)
            trainer, clock = make_trainer(given.size, copies, folder), Clock()
            if copies:
                began = time.perf_counter()
                trainer.crafts_once(train, "training", quiet=True)
                crafting = time.perf_counter() - began
            trainer.fit(train, epochs=1 + given.epochs, verbose=0, callbacks=[clock])
            seconds[name] = min(clock.seconds[1:])
        size = sum(path.stat().st_size for path in Path(folder).glob("*.npy"))
    print(f"{given.images} images of {given.size} x {given.size}, PGD-10 of {' and '.join(SOURCES)}")
    print(f"an epoch, crafted afresh  {seconds['afresh']:8.2f} s")
    print(f"an epoch, crafted once    {seconds['once']:8.2f} s, 1 / {seconds['afresh'] / seconds['once']:.1f}")
    print(f"crafting, before training {crafting:8.2f} s, for {given.copies} copies of each image by each source")
    saved = seconds["afresh"] - seconds["once"]
    print(f"pays from epoch           {int(np.ceil(crafting / saved)):5}")
    print(f"on disk                   {size / 1e6:8.2f} MB, {size / pixels.nbytes:.2f} times the images' pixels")


if __name__ == "__main__":
    main()
