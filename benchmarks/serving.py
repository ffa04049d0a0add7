"""Latency and throughput of an exported network: SavedModel, Keras `predict`, LiteRT and ONNX Runtime, in one run.

    python benchmarks/serving.py
    python benchmarks/serving.py --backbone resnet50_face --image_size 224

Each runtime answers batches of 1, 8 and 32 images; the SavedModel also takes them as JPEG files, with twice the
network's height and width, which it decodes and shrinks. They take turns, so that other load on the machine affects all
of them. A time is the median of the rounds; the ratio is the speed relative to Keras `predict`. The transport of a
server is not included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from satm_tf import ImageClassifier
from satm_tf.models.runtimes import RuntimeModel
from satm_tf.serving import export_saved_model, formats

REFERENCE = "Keras predict"


def photographs(count: int, side: int) -> list[bytes]:
    """JPEGs with coarse and fine detail."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(count):
        octaves = [(4, 60.0), (16, 30.0), (64, 12.0)]
        image = 128 + sum(tf.image.resize(random.normal(0, a, (n, n, 3)), (side, side), "bicubic") for n, a in octaves)
        files.append(tf.io.encode_jpeg(tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8), quality=90).numpy())
    return files


def ways(network: ImageClassifier, folder: Path, images: np.ndarray, files: list[bytes]) -> dict[str, Callable]:
    """Functions of a batch size, by the names under which they are printed."""
    labels = [f"class {index}" for index in range(network.num_classes)]
    loaded: Any = tf.saved_model.load(str(export_saved_model(network, folder / "model", labels=labels)))

    def signature(name: str, **inputs: Any) -> Callable:
        ((key, values),) = inputs.items()
        # Keep a reference to `loaded`, which owns the variables.
        return lambda size: loaded.signatures[name](**{key: tf.constant(values[:size])})

    result = {
        REFERENCE: lambda size: network.predict(images[:size], verbose=0),
        "SavedModel, floats": signature("serving_default", images=images),
        "SavedModel, JPEGs": signature("serving_bytes", image_bytes=files),
    }
    for name, kind in formats.FORMATS.items():
        options = {"calibration": images} if kind.calibrated else {}
        run = RuntimeModel(formats.convert(network, folder / "model", name, samples=images[:4], **options)).run
        result[name] = lambda size, run=run: run(images[:size])
    return result


def measure(functions: dict[str, Callable], size: int, rounds: int) -> dict[str, float]:
    """The median seconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 2):  # the first two compile and warm up
        for name, function in functions.items():
            began = time.perf_counter()
            function(size)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="compact_resnet")
    parser.add_argument("--image_size", type=int, default=48)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    side, most = options.image_size, max(options.batch_sizes)
    network = ImageClassifier.from_backbone(options.backbone, num_classes=8, image_shape=(side, side, 3))
    images = np.random.default_rng(0).uniform(size=(most, side, side, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        functions = ways(network, Path(folder), images, photographs(most, 2 * side))
        print(f"{options.backbone}, {network.count_params():,} parameters, images of {side} x {side}")
        print(f"{'':20}{'batch':>6}{'milliseconds':>14}{'images/s':>10}{'x Keras':>9}")
        for size in options.batch_sizes:
            times = measure(functions, size, options.rounds)
            for name, taken in times.items():
                print(f"{name:20}{size:6}{taken * 1e3:14.2f}{size / taken:10.0f}{times[REFERENCE] / taken:9.1f}")


if __name__ == "__main__":
    main()
