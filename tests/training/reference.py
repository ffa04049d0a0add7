"""One step of any scheme in plain TensorFlow and NumPy, from the formulas, without the trainer or its helpers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf.attacks import KLPGD, PGD, Attack, IterativeLL, RandomisedStep, StepLL

EPSILON, RATE = 16 / 256, 0.1
RANDOMISED, PROJECTED = RandomisedStep(epsilon=EPSILON), PGD(epsilon=EPSILON, steps=10)


@dataclass(frozen=True)
class Case:
    """What a scheme means for the networks a, b, c that train and the frozen network o.

    `turns` gives for each turn the sources of each network, in the order of its domains. `domain` is "reversal" (clean
    against adversarial), "reversal of each" (clean against each source) or "distance".
    What is a mapping is each network's own.
    """

    turns: Sequence[Mapping[str, str]]
    attack: Any = None
    frozen_attack: Attack | None = None
    clean: Any = 1.0
    adversarial: Any = 1.0
    divergence: Any = False
    pairing: Any = 0.0
    peer: float = 0.0
    domain: str = ""
    domain_weight: float = 0.1
    strength: float = 2 / (1 + np.exp(-10.0)) - 1  # Ganin's at its end, where a step that nobody planned is


ITSELF, PARTNER, FROZEN = {"a": "a", "b": "b"}, {"a": "b", "b": "a"}, {"a": "o", "b": "o"}

CASES = {
    "undefended": Case([{"a": "", "b": ""}]),
    "adversarial": Case([ITSELF], RANDOMISED),
    "pgd": Case([ITSELF], PROJECTED, clean=0.0),
    "trades": Case([ITSELF], KLPGD(epsilon=EPSILON, steps=10), adversarial=6.0, divergence=True),
    "ensemble": Case([FROZEN], RANDOMISED),
    "ensemble_with_itself": Case([ITSELF, FROZEN], RANDOMISED),
    "cascade": Case(
        [ITSELF, FROZEN],
        StepLL(epsilon=EPSILON),
        IterativeLL(epsilon=EPSILON, steps=10),
        domain="distance",
        domain_weight=1e-4,
    ),
    "satm": Case([PARTNER], RANDOMISED, domain="reversal"),
    "satm_all_sources": Case([{"a": "bc", "b": "ca", "c": "ab"}], RANDOMISED, domain="reversal of each"),
    "satm_white_box": Case([PARTNER, ITSELF], RANDOMISED, domain="reversal"),
    "mutual": Case([{"a": "ab", "b": "ba"}], PROJECTED, clean=0.0, peer=1.0),
    "cat": Case(
        [ITSELF],
        {"a": KLPGD(epsilon=EPSILON, steps=10), "b": PROJECTED},
        clean={"a": 1 / 20, "b": 1 / 40},
        adversarial={"a": 6 / 20, "b": 1 / 40},
        divergence={"a": True, "b": False},
        pairing={"a": 0.0, "b": 1 / 20},
        peer=19 / 20,
    ),
    "pubdef": Case([FROZEN], PROJECTED, clean=0.5, adversarial=0.5),
}


def step(
    case: Case,
    networks: Mapping[str, keras.Model],
    frozen: Mapping[str, keras.Model],
    heads: Mapping[str, Sequence[tf.Variable]],
    images: np.ndarray,
    labels: np.ndarray,
    count: int,
    seed: int,
) -> dict[str, float]:
    """Takes the step of this count with plain gradient descent; the figures that it is to report.

    `heads` are the kernels and biases of each network's domain classifier.
    """
    sources = case.turns[count % len(case.turns)]
    everyone = {**networks, **frozen}
    crafted = {each: _craft(case, each, everyone, images, labels, count, seed) for each in {*"".join(sources.values())}}
    adversarial = {name: [crafted[source] for source in sources[name]] for name in networks}
    answers = {
        name: [[networks[peer](x, training=False) for x in adversarial[name]] for peer in networks if peer != name]
        for name in networks
    }
    everything = {
        name: _learn(
            _of(case, name), networks[name], heads.get(name), images, labels, adversarial[name], answers[name], place
        )
        for name in networks
        for place in [_domains(case, name, sources[name])]
    }
    figures = {"loss": 0.0}
    for name, (gradients, parts) in everything.items():
        for variable, gradient in gradients:
            variable.assign_sub(RATE * gradient)
        figures["loss"] += float(parts["loss"])
        figures |= {f"{name}_{part}": float(value) for part, value in parts.items()}
    return figures


def _craft(
    case: Case, source: str, networks: Mapping[str, Any], images: Any, labels: Any, count: int, seed: int
) -> tf.Tensor:
    """A step's random numbers follow from the seed, the count and the place of the source."""
    case = _of(case, source)
    attack = case.frozen_attack if source == "o" and case.frozen_attack else case.attack
    fold_in = tf.random.experimental.stateless_fold_in
    numbers = fold_in(fold_in([seed, 0], tf.constant(count, tf.int64)), list(networks).index(source))
    return _compiled(attack, networks[source])(images, labels, seed=numbers)


@functools.cache
def _compiled(attack: Attack, network: keras.Model) -> Any:
    return attack.compiled(network)


def _of(case: Case, name: str) -> Case:
    """What a case means for one network."""
    fields = vars(case).items()
    return replace(case, **{field: value.get(name) for field, value in fields if isinstance(value, Mapping)})


def _domains(case: Case, name: str, sources: str) -> list[int]:
    """Clean is the first domain; then all adversarial images are the second, or those of each source their own."""
    if case.domain != "reversal of each":
        return [1] * len(sources)
    order = "".join(turn[name] for turn in case.turns)
    return [1 + order.index(source) for source in sources]


def _learn(
    case: Case,
    network: keras.Model,
    head: Sequence[tf.Variable] | None,
    images: np.ndarray,
    labels: np.ndarray,
    adversarial: Sequence[tf.Tensor],
    answers: Sequence[Sequence[tf.Tensor]],
    domains: Sequence[int],
) -> tuple[list[tuple[Any, tf.Tensor]], dict[str, float]]:
    """Gradients of one network's loss with its variables, and the parts of the loss."""
    count = len(adversarial)
    truth = np.eye(network.num_classes, dtype=np.float32)[labels]
    weights = network.trainable_variables
    with tf.GradientTape(persistent=True) as tape:
        features = network.features(tf.concat([images, *adversarial], 0), training=True)
        logits = tf.split(network.classify(features, training=True), 1 + count)
        features = tf.split(features, 1 + count)
        parts = {"clean_loss": -_mean(truth * tf.math.log(tf.nn.softmax(logits[0])))}
        loss = case.clean * parts["clean_loss"]
        if count:
            if case.divergence:
                losses = [_divergence(logits[0], attacked) for attacked in logits[1:]]
            else:
                losses = [-_mean(truth * tf.math.log(tf.nn.softmax(attacked))) for attacked in logits[1:]]
            parts["adversarial_loss"] = sum(losses) / count
            loss += case.adversarial * parts["adversarial_loss"]
        if case.pairing:
            parts["pairing_loss"] = sum(tf.reduce_mean((each - logits[0]) ** 2) for each in logits[1:]) / count
            loss += case.pairing * parts["pairing_loss"]
        if case.peer:
            losses = [_divergence(given, own) for peer in answers for given, own in zip(peer, logits[1:], strict=True)]
            parts["peer_loss"] = sum(losses) / len(losses)
            loss += case.peer * parts["peer_loss"]
        if case.domain == "distance":
            parts["domain_loss"] = sum(_mean(tf.square(each - features[0])) for each in features[1:]) / count
            loss += case.domain_weight * parts["domain_loss"]
        elif case.domain:
            parts |= _domain_parts(head, features, domains)
            domain = case.domain_weight * parts["domain_loss"]
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    if head is not None:
        # The reversal by hand: the network goes up what the classifier goes down.
        against = tape.gradient(domain, [weight.value for weight in weights], unconnected_gradients="zero")
        gradients = [g - case.strength * a for g, a in zip(gradients, against, strict=True)]
        gradients += tape.gradient(domain, list(head))
        loss += domain
    for kind, answered in (("", logits[:1]), ("adversarial_", logits[1:])):
        if answered:
            errors = np.abs(np.argmax(answered, -1) - labels)
            parts[f"{kind}accuracy"] = np.mean(errors == 0)
            parts[f"{kind}one_off_accuracy"] = np.mean(errors <= 1)
    return list(zip([*weights, *(head or [])], gradients, strict=True)), {**parts, "loss": loss}


def _domain_parts(
    head: Sequence[tf.Variable] | None, features: Sequence[tf.Tensor], domains: Sequence[int]
) -> dict[str, tf.Tensor]:
    """Clean and adversarial images count alike, however many sources there are."""
    first_kernel, first_bias, second_kernel, second_bias = head
    losses, hits = [], []
    for each, domain in zip(features, [0, *domains], strict=True):
        outputs = tf.nn.relu(each @ first_kernel + first_bias) @ second_kernel + second_bias
        if outputs.shape[-1] == 1:
            adversarial = tf.sigmoid(outputs)[:, 0]
            probabilities = tf.stack([1 - adversarial, adversarial], -1)
        else:
            probabilities = tf.nn.softmax(outputs)
        losses.append(-tf.reduce_mean(tf.math.log(probabilities[:, domain])))
        hits.append(np.mean(np.argmax(probabilities, -1) == domain))
    count = len(domains)
    return {
        "domain_loss": losses[0] / 2 + sum(losses[1:]) / (2 * count),
        "domain_accuracy": hits[0] / 2 + sum(hits[1:]) / (2 * count),
    }


def _mean(values: tf.Tensor) -> tf.Tensor:
    """Of a batch, the mean of the sums over what each image has."""
    return tf.reduce_mean(tf.reduce_sum(values, -1))


def _divergence(of: tf.Tensor, to: tf.Tensor) -> tf.Tensor:
    p, q = tf.nn.softmax(of), tf.nn.softmax(to)
    return _mean(p * tf.math.log(p / q))
