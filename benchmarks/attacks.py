"""Adversarial images per second, compared with Foolbox, ART and CleverHans, on one Keras model in one run.

    python benchmarks/attacks.py [--batch 64] [--size 32] [--rounds 5] [--only FGSM PGD-10]

Each peer runs as its users run it; a peer that is not installed is skipped with a message. The limit of a single-step
attack is one compiled forward and input-gradient pass; that of an iterative one, one such pass per step. All take
turns, and the fastest round counts, to exclude the effect of other work on the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf import attacks, models

EPSILON = 8 / 256
STEPS = 10
DEEPFOOL_STEPS = 10
CW = {"rounds": 3, "steps": 20}

Craft = Callable[[], Any]


def ours(network: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> dict[str, Craft]:
    blurred = ["input_diversity", {"name": "translation_invariance", "size": 5}]
    chosen = {
        "R+Step-LL": attacks.RandomisedStep(epsilon=EPSILON),
        "FGSM": attacks.FGSM(epsilon=EPSILON),
        "PGD-10": attacks.PGD(epsilon=EPSILON, steps=STEPS),
        "MI-FGSM-10": attacks.MIFGSM(epsilon=EPSILON, steps=STEPS),
        "MI-DI-TI-10": attacks.MIFGSM(epsilon=EPSILON, steps=STEPS, transforms=blurred),
        "DeepFool": attacks.DeepFool(steps=DEEPFOOL_STEPS),
        "C&W L2": attacks.CarliniWagnerL2(**CW),
    }
    compiled = {name: attack.compiled(network) for name, attack in chosen.items()}
    return {name: lambda craft=craft: craft(images, labels).numpy() for name, craft in compiled.items()}


def limit(network: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> dict[str, Craft]:
    @tf.function
    def one_pass(images: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, network(images, training=False))
        return tape.gradient(losses, images)

    return {"one pass": lambda: one_pass(images).numpy()}


def foolbox(network: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> dict[str, Craft]:
    import foolbox

    model, labels = foolbox.TensorFlowModel(network, bounds=(0, 1)), tf.cast(labels, tf.int64)
    chosen = {
        "FGSM": (foolbox.attacks.LinfFastGradientAttack(), EPSILON),
        "PGD-10": (foolbox.attacks.LinfPGD(rel_stepsize=2.5 / STEPS, steps=STEPS), EPSILON),
        "DeepFool": (foolbox.attacks.L2DeepFoolAttack(steps=DEEPFOOL_STEPS), None),
        "C&W L2": (
            foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=CW["rounds"], steps=CW["steps"]),
            None,
        ),
    }
    return {
        name: lambda attack=attack, epsilon=epsilon: attack(model, images, labels, epsilons=epsilon)[1].numpy()
        for name, (attack, epsilon) in chosen.items()
    }


def art(network: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> dict[str, Craft]:
    from art.attacks import evasion
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        network,
        nb_classes=int(network.output_shape[-1]),
        input_shape=tuple(images.shape[1:]),
        loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0, 1),
    )
    shared = {"batch_size": len(images)}
    chosen = {
        "FGSM": evasion.FastGradientMethod(classifier, eps=EPSILON, **shared),
        "PGD-10": evasion.ProjectedGradientDescentTensorFlowV2(
            classifier,
            eps=EPSILON,
            eps_step=2.5 * EPSILON / STEPS,
            max_iter=STEPS,
            num_random_init=1,
            verbose=False,
            **shared,
        ),
        "DeepFool": evasion.DeepFool(
            classifier, max_iter=DEEPFOOL_STEPS, epsilon=0.02, nb_grads=10, verbose=False, **shared
        ),
        "C&W L2": evasion.CarliniL2Method(
            classifier, max_iter=CW["steps"], binary_search_steps=CW["rounds"], verbose=False, **shared
        ),
    }
    x, y = images.numpy(), labels.numpy()
    return {name: lambda attack=attack: attack.generate(x, y=y) for name, attack in chosen.items()}


def cleverhans(network: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> dict[str, Craft]:
    from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    def predict(x: tf.Tensor) -> tf.Tensor:
        return network(x, training=False)

    return {
        "FGSM": lambda: fast_gradient_method(predict, images, EPSILON, np.inf, y=labels).numpy(),
        "PGD-10": lambda: projected_gradient_descent(
            predict, images, EPSILON, 2.5 * EPSILON / STEPS, STEPS, np.inf, y=labels
        ).numpy(),
    }


def measure(crafts: dict[tuple[str, str], Craft], rounds: int) -> dict[tuple[str, str], float]:
    """The shortest time of each, without the first call."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for key, craft in crafts.items():
        try:
            craft()
            seconds[key] = []
        except Exception as error:
            print(f"skipped: {key[0]}'s {key[1]}: {type(error).__name__}: {str(error)[:90]}")
    for _ in range(rounds):
        for key, times in seconds.items():
            start = time.perf_counter()
            crafts[key]()
            times.append(time.perf_counter() - start)
    return {key: min(times) for key, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of the attacks to run; all if not given")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    shape = (arguments.size, arguments.size, 3)
    classifier = models.ImageClassifier.from_backbone("compact_resnet", num_classes=10, image_shape=shape)
    # A plain functional model, because some peers do not accept subclassed ones.
    inputs = keras.Input(shape)
    network = keras.Model(inputs, classifier(inputs))
    images = tf.constant(np.random.default_rng(0).uniform(0, 1, [arguments.batch, *shape]).astype("float32"))
    labels = tf.argmax(network(images, training=False), -1, tf.int32)
    crafts: dict[tuple[str, str], Craft] = {}
    for library in (limit, ours, foolbox, art, cleverhans):
        try:
            crafts |= {(library.__name__, name): craft for name, craft in library(network, images, labels).items()}
        except ImportError as error:
            print(f"skipped: {library.__name__} is not installed ({error})")
    if arguments.only:
        crafts = {key: craft for key, craft in crafts.items() if key[1] in {"one pass", *arguments.only}}
    seconds = measure(crafts, arguments.rounds)
    one_pass = seconds["limit", "one pass"]
    peers = ("foolbox", "art", "cleverhans")
    print(
        f"\n{arguments.batch} images of {arguments.size} pixels; one pass: {arguments.batch / one_pass:,.0f} images/s\n"
    )
    print(f"{'attack':14}{'images/s':>10}{'passes':>9}" + "".join(f"{'x ' + peer:>14}" for peer in peers))
    for (library_name, name), time_ in seconds.items():
        if library_name == "ours":
            ratios = "".join(
                f"{seconds[peer, name] / time_:14.2f}" if (peer, name) in seconds else f"{'-':>14}" for peer in peers
            )
            print(f"{name:14}{arguments.batch / time_:10,.0f}{time_ / one_pass:9.2f}{ratios}")
    if {("ours", "MI-DI-TI-10"), ("ours", "MI-FGSM-10")} <= set(seconds):
        ratio = seconds["ours", "MI-DI-TI-10"] / seconds["ours", "MI-FGSM-10"]
        print(f"\nMI-DI-TI costs {ratio:.2f} times MI-FGSM")


if __name__ == "__main__":
    main()
