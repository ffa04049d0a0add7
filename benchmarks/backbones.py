"""Parameters, time and memory of every backbone, and the share of the time that preprocessing adds.

    python benchmarks/backbones.py                          # every backbone at its default size
    python benchmarks/backbones.py vgg16_face resnet50_face --size 96 --batch 8 --policy mixed_bfloat16

Each backbone is measured in a separate process, so that the memory peak is its own. Times are the best of several runs
of a `tf.function`, in milliseconds per batch: `forward` in inference, `attack` the gradient on the images in inference,
`update` the gradient on the weights in training. The share of preprocessing is its own forward and backward time
divided by the attack's: an upper bound, because it includes the cost of a call. The last column is the same update with
Keras's batch normalisation instead of the fused one, as a ratio: above 1, the fused one is faster.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

COLUMNS = ("parameters", "forward", "attack", "update", "peak MB", "preprocessing %", "fused bn x")


def best_of(runs: int, *functions: Callable[[], Any]) -> list[float]:
    """The shortest time of each function in milliseconds; they take turns, so that a busy machine affects all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(runs):
        for function, measured in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            measured.append(1e3 * (time.perf_counter() - start))
    return [min(measured) for measured in times]


def measure(name: str, size: int | None, batch: int, policy: str, runs: int) -> dict[str, float]:
    """The figures of one backbone, in this process."""
    import keras
    import tensorflow as tf

    from satm_tf.models import ImageClassifier
    from satm_tf.models.normalization import BatchNormalization

    keras.config.set_dtype_policy(policy)
    network = ImageClassifier.from_backbone(name, num_classes=8, image_shape=(size, size, 3) if size else None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    images = tf.random.uniform([batch, *network.image_shape], seed=0)
    labels = tf.range(batch) % 8

    def update_function() -> Callable[[], Any]:
        @tf.function
        def update() -> Any:
            with tf.GradientTape() as tape:
                value = loss(labels, network(images, training=True))
            return tape.gradient(value, network.trainable_variables)

        return update

    @tf.function
    def forward() -> tf.Tensor:
        return network(images, training=False)

    @tf.function
    def attack() -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            value = loss(labels, network(images, training=False))
        return tape.gradient(value, images)

    @tf.function
    def preprocess() -> tf.Tensor:
        """Preprocessing in an attack: one forward and one backward pass."""
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = network.preprocessing(images)
        return tape.gradient(outputs, images, output_gradients=outputs)

    update = update_function()
    forward_ms, attack_ms, update_ms, preprocess_ms = best_of(runs, forward, attack, update, preprocess)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratio = 1.0
    if any(isinstance(layer, BatchNormalization) for layer in network.backbone.layers):
        fused_call = BatchNormalization.call
        BatchNormalization.call = keras.layers.BatchNormalization.call
        plain = update_function()
        plain()
        BatchNormalization.call = fused_call
        fused_ms, plain_ms = best_of(runs, update, plain)
        ratio = plain_ms / fused_ms
    values = (
        network.count_params(), forward_ms, attack_ms, update_ms, peak, 100 * preprocess_ms / attack_ms, ratio
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", help="names of backbones; all registered ones if not given")
    parser.add_argument("--size", type=int, help="height and width of the images; each backbone's default if not given")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--policy", default="float32", help="float32, mixed_bfloat16 or mixed_float16")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="measure one backbone here and print JSON")
    arguments = parser.parse_args()
    if arguments.json:
        (name,) = arguments.backbones
        print(json.dumps(measure(name, arguments.size, arguments.batch, arguments.policy, arguments.runs)))
        return
    if not arguments.backbones:
        from satm_tf.models import available_backbones

        arguments.backbones = available_backbones()
    given = {key: getattr(arguments, key) for key in ("size", "batch", "policy", "runs")}
    options = [f"--{key}={value}" for key, value in given.items() if value is not None]
    print(f"batch {arguments.batch}, {arguments.policy}, size {arguments.size or 'default'}; milliseconds per batch")
    print(f"{'backbone':30}" + "".join(f"{column:>17}" for column in COLUMNS))
    for name in arguments.backbones:
        command = [sys.executable, __file__, name, "--json", *options]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        formats = (",.0f", ".0f", ".0f", ".0f", ",.0f", ".1f", ".2f")
        print(f"{name:30}" + "".join(f"{figures[c]:>17{f}}" for c, f in zip(COLUMNS, formats, strict=True)), flush=True)


if __name__ == "__main__":
    main()
