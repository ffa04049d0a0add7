"""Images per second of SATM's step, compared with its parts, a plain eager loop and ART's adversarial trainer.

    python benchmarks/train_step.py [--pair compact | full] [--rounds 5] [--only satm parts] [--memory]

- parts: the minimum work of a trainer that shares nothing: for each network a compiled input-gradient pass, and a
  compiled `train_on_batch` of the clean and the adversarial batch together.
- eager: the same step as a loop of uncompiled TensorFlow calls.
- art: `AdversarialTrainer` of the Adversarial Robustness Toolbox, once for each network, with FGSM on both: half of
  each batch is adversarial, from images crafted once for the whole set. Left out with a message if it is not installed.
- bfloat16: SATM in `mixed_bfloat16`.

All take turns, and the fastest round counts, to exclude the effect of other work on the machine. `--memory` adds the
peak memory of each, measured in a separate process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf import CoTraining, ImageClassifier
from satm_tf.attacks import RandomisedStep

EPSILON, CLASSES, RATE = 16 / 256, 8, 1e-4
PAIRS = {
    "compact": (("compact_vgg", "compact_resnet"), 28, 128),
    "full": (("vgg16_face", "resnet50_face"), 224, 8),
}
Step = Callable[[], Any]
Networks = dict[str, ImageClassifier]


def make_networks(pair: str) -> Networks:
    backbones, size, _ = PAIRS[pair]
    keras.utils.set_random_seed(0)
    return {
        name: ImageClassifier.from_backbone(name, num_classes=CLASSES, image_shape=(size, size, 3))
        for name in backbones
    }


def satm(pair: str, images: tf.Tensor, labels: tf.Tensor) -> Step:
    trainer = CoTraining(make_networks(pair), learns_from="others", attack=RandomisedStep(epsilon=EPSILON))
    trainer.compile(keras.optimizers.SGD(RATE, momentum=0.9))
    trainer.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
    return lambda: float(trainer.train_function(batches)["loss"])


def bfloat16(pair: str, images: tf.Tensor, labels: tf.Tensor) -> Step:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return satm(pair, images, labels)
    finally:
        keras.config.set_dtype_policy(before)


def parts(pair: str, images: tf.Tensor, labels: tf.Tensor) -> Step:
    networks = make_networks(pair)
    doubled = tf.concat([images, images], 0), tf.concat([labels, labels], 0)
    passes = []
    for network in networks.values():
        network.compile(
            keras.optimizers.SGD(RATE, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )

        @tf.function
        def input_gradient(network: ImageClassifier = network) -> tf.Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, network(images, training=False))
            return tape.gradient(losses, images)

        passes.append(input_gradient)

    def step() -> None:
        for one_pass, network in zip(passes, networks.values(), strict=True):
            one_pass()
            network.train_on_batch(*doubled)

    return step


def eager(pair: str, images: tf.Tensor, labels: tf.Tensor) -> Step:
    networks = make_networks(pair)
    optimizers = {name: keras.optimizers.SGD(RATE, momentum=0.9) for name in networks}
    (a, b), attack = networks, RandomisedStep(epsilon=EPSILON)

    def step() -> None:
        crafted = {name: attack(network, images, labels, seed=1) for name, network in networks.items()}
        for name, source in ((a, b), (b, a)):
            network = networks[name]
            with tf.GradientTape() as tape:
                both = network(tf.concat([images, crafted[source]], 0), training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.tile(labels, [2]), both)
                loss = 2 * tf.reduce_mean(losses)
            variables = network.trainable_variables
            optimizers[name].apply(tape.gradient(loss, variables), variables)

    return step


def art(pair: str, images: tf.Tensor, labels: tf.Tensor) -> Step:
    from art.attacks.evasion import FastGradientMethod
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import TensorFlowV2Classifier

    networks = make_networks(pair)
    classifiers = [
        TensorFlowV2Classifier(
            network,
            nb_classes=CLASSES,
            input_shape=tuple(images.shape[1:]),
            loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            optimizer=keras.optimizers.SGD(RATE, momentum=0.9),
            clip_values=(0, 1),
        )
        for network in networks.values()
    ]
    attacks = [FastGradientMethod(each, eps=EPSILON, batch_size=len(images)) for each in classifiers]
    trainers = [AdversarialTrainer(each, attacks, ratio=0.5) for each in classifiers]
    pixels, classes = images.numpy(), labels.numpy()

    def step() -> None:
        for trainer in trainers:
            trainer.fit(pixels, classes, batch_size=len(pixels), nb_epochs=1)

    return step


VARIANTS: dict[str, Callable[[str, tf.Tensor, tf.Tensor], Step]] = {
    "satm": satm, "parts": parts, "eager": eager, "art": art, "bfloat16": bfloat16,
}  # fmt: skip


def make_batch(pair: str) -> tuple[tf.Tensor, tf.Tensor]:
    _, size, batch = PAIRS[pair]
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(batch, size, size, 3)).astype(np.float32)
    return tf.constant(images), tf.constant(rng.integers(0, CLASSES, batch).astype(np.int32))


def peak_memory() -> int:
    """MiB of this process only: `getrusage` also counts its parent's memory at the start."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pair", choices=PAIRS, default="compact")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=3, help="steps per round")
    options.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options.add_argument("--memory", action="store_true")
    given = options.parse_args()
    batch = make_batch(given.pair)
    steps: dict[str, Step] = {}
    for name in given.only:
        try:
            steps[name] = VARIANTS[name](given.pair, *batch)
            steps[name]()  # traces
        except ImportError as missing:
            steps.pop(name, None)
            print(f"{name} is left out: {missing}")
    fastest = dict.fromkeys(steps, float("inf"))
    for _ in range(given.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(given.steps):
                step()
            fastest[name] = min(fastest[name], (time.perf_counter() - began) / given.steps)
    memory = dict.fromkeys(steps, "")
    if given.memory and len(steps) > 1:
        for name in steps:
            command = [sys.executable, __file__, "--pair", given.pair, "--rounds", "1", "--only", name, "--memory"]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            memory[name] = output.split()[-2]
    backbones, size, count = PAIRS[given.pair]
    print(f"\n{given.pair}: {' and '.join(backbones)}, {count} images of {size} x {size}")
    print(f"{'':10}{'images/s':>10}{'satm/this':>12}{'peak MiB':>10}")
    for name, seconds in fastest.items():
        ratio = f"{seconds / fastest['satm']:.2f}" if "satm" in fastest else ""
        print(f"{name:10}{count / seconds:10.1f}{ratio:>12}{memory[name]:>10}")
    if given.memory and len(steps) == 1:
        print(f"peak memory {peak_memory()} MiB")


if __name__ == "__main__":
    main()
