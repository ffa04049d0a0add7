"""Images per second from JPEGs to batches: Keras's loader, ours, and ours with prepared images.

    python benchmarks/data_pipeline.py

Each pipeline runs in a separate process, on the same files, over a set and over one ten times as large; the larger set
names the same pictures ten times, so that only the pipeline's own memory can grow. Rates are the best of several passes
over all images, with the files in the page cache. Processor time is shown too, because it stays comparable on a busy
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("keras", "straight", "prepared")


def write_pictures(root: Path, options: argparse.Namespace, pictures: int = 32) -> None:
    """JPEGs with a photograph's mixture of coarse and fine detail, about 90 KB at 816 x 816, in two classes."""
    import numpy as np
    import tensorflow as tf

    side, rng = options.source_size, np.random.default_rng(0)
    for number in range(pictures):
        octaves = [(4, 60.0), (16, 30.0), (64, 12.0), (256, 5.0)]
        image = 128 + sum(tf.image.resize(rng.normal(0, a, (n, n, 3)), (side, side), "bicubic") for n, a in octaves)
        jpeg = tf.io.encode_jpeg(tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8), quality=90)
        (root / f"{number}.jpg").write_bytes(jpeg.numpy())
    for name, count in (("small", options.images), ("large", 10 * options.images)):
        for number in range(count):
            link = root / name / "ab"[number % 2] / f"{number:06d}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(root / f"{number % pictures}.jpg")


def dataset(way: str, root: Path, options: argparse.Namespace):
    """The batches of a set, in one of the three ways."""
    size = (options.image_size, options.image_size)
    if way == "keras":
        import keras

        return keras.utils.image_dataset_from_directory(
            root, image_size=size, batch_size=options.batch_size, shuffle=True, seed=0, verbose=False
        )
    import numpy as np

    from satm_tf.data import Account, Examples, ImageData, batches, prepared

    paths = sorted(str(path) for path in Path(os.path.realpath(root)).rglob("*.jpg"))
    examples, none = Examples(labels=np.zeros(len(paths)), paths=paths), Examples(labels=[], paths=[])
    if way == "prepared":
        packed = root.with_name(root.name + "_prepared")
        prepared.pack([examples], packed, root=root, image_size=size)
        data = ImageData(examples, none, none, ("a", "b"), False, Account(len(paths), len(paths)))
        examples = prepared.attach(data, packed, root=root).train
    return batches(examples, image_size=size, batch_size=options.batch_size, shuffle=True)


def measure(way: str, root: Path, options: argparse.Namespace) -> dict[str, float]:
    batched = dataset(way, root, options)
    rates, costs = [], []
    for _ in range(options.repeats + 1):  # the first pass fills the page cache and is not counted
        started, spent, images = time.perf_counter(), time.process_time(), 0
        for batch, _ in batched:
            images += len(batch)
        rates.append(images / (time.perf_counter() - started))
        costs.append((time.process_time() - spent) / images * 1e6)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_second": max(rates[1:]), "cpu_microseconds": min(costs[1:]), "peak_megabytes": memory}


def measure_step(options: argparse.Namespace) -> float:
    """Seconds for one forward and backward pass of the paper's pair: a third of the work of a SATM step, or less."""
    import keras
    import tensorflow as tf

    shape = (options.image_size, options.image_size, 3)
    pair = [
        build(weights=None, classes=8, input_shape=shape)
        for build in (keras.applications.VGG16, keras.applications.ResNet50)
    ]
    images = tf.random.uniform((8, *shape))

    @tf.function
    def step():
        with tf.GradientTape(persistent=True) as tape:
            losses = [tf.reduce_sum(network(images, training=True)[:, 0]) for network in pair]
        return [tape.gradient(loss, network.trainable_weights) for loss, network in zip(losses, pair, strict=True)]

    step()
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=100, help="images in the small set; the large one has ten times as many"
    )
    parser.add_argument("--source_size", type=int, default=816, help="side of the JPEGs")
    parser.add_argument("--image_size", type=int, default=224, help="side of the images in a batch")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--no_step", action="store_true", help="leave out the training step")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        way, root = options.worker
        print(json.dumps(measure_step(options) if way == "step" else measure(way, Path(root), options)))
        return

    def run(way: str, root: Path):
        command = [sys.executable, *sys.argv, "--worker", way, str(root)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root, options)
        kilobytes = sum(path.stat().st_size for path in root.glob("*.jpg")) / len(list(root.glob("*.jpg"))) / 1024
        print(
            f"{options.images} and {10 * options.images} JPEGs of {options.source_size} x {options.source_size}, "
            f"{kilobytes:.0f} KB each, to batches of {options.batch_size} x {options.image_size} x {options.image_size}"
        )
        results = {way: {name: run(way, root / name) for name in ("small", "large")} for way in WAYS}
        print(f"{'':10}{'images/s':>10}{'x Keras':>9}{'CPU us/image':>14}{'x Keras':>9}{'peak MB':>9}{'ten times':>11}")
        reference = results["keras"]["large"]
        for way, result in results.items():
            large = result["large"]
            print(
                f"{way:10}{large['images_per_second']:10.0f}"
                f"{large['images_per_second'] / reference['images_per_second']:9.1f}{large['cpu_microseconds']:14.0f}"
                f"{reference['cpu_microseconds'] / large['cpu_microseconds']:9.1f}"
                f"{result['small']['peak_megabytes']:9.0f}{large['peak_megabytes']:11.0f}"
            )
        if not options.no_step:
            step = run("step", root)
            slowest = min(results[way]["large"]["images_per_second"] for way in ("straight", "prepared"))
            print(
                f"One pass of the paper's pair takes {8 / step:.1f} images/s, "
                f"{slowest * step / 8:.0f} times fewer than the slower of our pipelines delivers"
            )


if __name__ == "__main__":
    main()
