"""The transfer matrix: adversarial examples of every source on every target."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.attacks import Attack
from satm_tf.bars import Bar
from satm_tf.evaluation.blocks import Blocks
from satm_tf.evaluation.predictions import CLEAN, Cell, Predictions, concatenate
from satm_tf.evaluation.rungs import RUNGS, Group, rung_of, rungs_of
from satm_tf.evaluation.stand_ins import StandIns

Network = Callable[..., tf.Tensor]


class Classifier(Protocol):
    """A network with its number of classes, such as `ImageClassifier`."""

    num_classes: int

    def __call__(self, images: Any, training: bool | None = None) -> Any:
        """Logits `[batch, num_classes]`."""


def transfer_matrix(
    *,
    sources: Mapping[str, Network],
    targets: Mapping[str, Classifier],
    dataset: tf.data.Dataset,
    attacks: Mapping[str, Attack],
    ordered: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Measures every target on clean images and on the adversarial examples of every source.

    Args:
        sources: As `measure` takes them.
        targets: As `measure` takes them.
        dataset: As `measure` takes it.
        attacks: As `measure` takes them.
        ordered: Whether the classes are ordered; if not, the one-off accuracy has no meaning and is NaN.
        **options: `epsilons`, `clean`, `seed`, `folder` and `stage`, as `measure` takes them.

    Returns:
        A tidy frame, one row per attack, epsilon, source and target, the clean rows first, with columns `attack`,
        `epsilon`, `source`, `target`; `accuracy` and `one_off_accuracy` (shares in [0, 1]), and the ends of their
        95 % intervals (Wilson's), `accuracy_low`, `accuracy_high`, `one_off_accuracy_low` and
        `one_off_accuracy_high`; and `images`. A clean row has attack "clean", epsilon 0 and an empty source.

    Raises:
        ValueError: As `measure` does.

    Example:
        >>> frame = transfer_matrix(sources={"a": a}, targets={"a": a, "b": b}, dataset=test,
        ...                         attacks={"fgsm": FGSM(epsilon=0.1)})
        >>> frame[(frame.source == "a") & (frame.target == "b")]
    """
    measured = measure(sources=sources, targets=targets, dataset=dataset, attacks=attacks, **options)
    return measured.frame(ordered)


def measure(
    *,
    sources: Mapping[str, Network],
    targets: Mapping[str, Classifier],
    dataset: tf.data.Dataset,
    attacks: Mapping[str, Attack],
    epsilons: Mapping[str, Sequence[float]] | None = None,
    clean: bool = True,
    groups: Mapping[str, Group] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    stage: str = "transfer matrix",
) -> Predictions:
    """Predicts the class of clean images and of every source's adversarial examples, with every target.

    A source's examples are crafted once per attack and epsilon and shown to all targets. If source and target are the
    same network, the attack is white-box.

    Args:
        sources: The networks that craft, by name.
        targets: The networks that are measured, by name, all with the same `num_classes`.
        dataset: Batches of `(images, labels)`: float images in [0, 1], integer labels.
        attacks: The attacks, by the name that results show; "clean" is reserved.
        epsilons: The epsilons of an attack, by its name; an attack that is not listed uses its own.
        clean: Whether to measure clean images too; without them there must be an attack.
        groups: What is known of groups of sources, as `rung_of` takes it. The examples of a source that is not a target
            are shown only to those targets for which it stands on a rung, if there are any.
        seed: Seed of the attacks' random numbers; each batch draws different ones.
        folder: The folder for finished blocks, each of one attack, epsilon and source, from which an interrupted
            measurement resumes. A block is reused only for the same networks, images, attack and seed.
        stage: The label of the progress bar.

    Returns:
        The predictions, clean ones first.

    Raises:
        ValueError: If there are no images or targets, an attack is named "clean", epsilons are given for an unknown
            attack, a source has an empty name, the targets differ in classes, or a folder is given and a network has no
            fingerprint.
        FloatingPointError: If a target's logits are not finite.

    Example:
        >>> predictions = measure(sources={"a": a}, targets={"a": a, "b": b}, dataset=test, folder="run/blocks",
        ...                       attacks={"pgd": PGD(epsilon=0.1)}, epsilons={"pgd": [0.05, 0.1]})
        >>> predictions.frame().query("attack == 'pgd'")
    """
    epsilons = dict(epsilons or {})
    num_classes = check_request(targets, attacks, epsilons)
    if not clean and not (attacks and sources):
        raise ValueError(f"Without clean images, give attacks and sources. Received: {[*attacks]}, {[*sources]}")
    if "" in sources:
        raise ValueError(
            f"Each source must have a name, since results show clean images without one. Received: {[*sources]}"
        )
    blocks = Blocks(folder, {**sources, **targets})
    labels, images_print = look_through(dataset, bool(folder), stage)
    shown = {source: list(targets) if source in targets else _attacked(source, targets, groups) for source in sources}
    shown[""] = list(targets)

    @functools.cache
    def predictor(names: tuple[str, ...]) -> Callable[[tf.Tensor], tf.Tensor]:
        return _predictor({name: targets[name] for name in names}, dataset)

    stand_ins = StandIns(sources.values())

    def make(name: str, source: str, epsilon: float) -> Predictions:
        craft, predict, predicted = _unchanged, predictor(tuple(shown[source])), []
        if source:  # Traced once for all epsilons and all sources of an architecture, and not if all blocks exist.
            crafter = functools.partial(_crafter, attacks[name], dataset)
            craft = stand_ins.compiled(name, crafter, sources[source])
        for index, (images, batch) in enumerate(dataset):
            adversarial = craft(images, batch, tf.constant(epsilon), tf.constant([seed, index]))
            predicted.append(predict(adversarial).numpy())
            bar.update()
        classes = np.concatenate(predicted, axis=1)
        _check_finite(classes, shown[source])
        cells = pd.DataFrame([Cell(name, epsilon, source, target) for target in shown[source]])
        return Predictions(cells, classes.astype(np.min_scalar_type(num_classes - 1)), labels, num_classes)

    crafts = [(CLEAN, "", 0.0)] if clean else []
    for name, attack in attacks.items():
        crafts += [(name, source, epsilon) for source in sources for epsilon in epsilons.get(name, [attack.epsilon])]
    parts = []
    with Bar(len(crafts) * len(dataset), stage, "batch") as bar:
        for index, (name, source, epsilon) in enumerate(crafts):
            if index and name != crafts[index - 1][0]:
                stand_ins.forget()
            block = blocks.get(
                functools.partial(make, name, source, epsilon),
                label=(name, f"{epsilon:g}", source),
                attack=attacks.get(name),
                epsilon=epsilon,
                source=blocks.prints.get(source),
                targets=shown[source],
                images=images_print,
                seed=seed,
            )
            parts.append(block)
            bar.update(len(parts) * len(dataset) - bar.n)
    measured = concatenate(parts)
    rungs = rungs_of(measured.cells.source, measured.cells.target, groups)
    return dataclasses.replace(measured, cells=measured.cells.assign(rung=rungs))


def _attacked(source: str, targets: Iterable[str], groups: Mapping[str, Group] | None) -> list[str]:
    """The targets for which a source stands on a rung; all targets if there are none."""
    return [target for target in targets if rung_of(source, target, groups) in RUNGS] or list(targets)


def check_request(
    targets: Mapping[str, Classifier], attacks: Mapping[str, Attack], epsilons: Mapping[str, Sequence[float]]
) -> int:
    """Checks that the targets can be measured, as `measure` does, and returns their number of classes."""
    if CLEAN in attacks:
        raise ValueError(f"The name {CLEAN!r} is reserved for clean images; choose another. Received: {list(attacks)}")
    if not targets:
        raise ValueError("There must be at least one target. Received: none")
    unusable = {name: list(values) for name, values in epsilons.items() if name not in attacks or not len(values)}
    if unusable:
        raise ValueError(
            f"Give at least one epsilon for each attack, and only for the attacks {list(attacks)}. Received: {unusable}"
        )
    classes = {name: target.num_classes for name, target in targets.items()}
    if len(set(classes.values())) > 1:
        raise ValueError(f"Networks that are measured together must have the same num_classes. Received: {classes}")
    return next(iter(classes.values()))


def look_through(dataset: tf.data.Dataset, digest_images: bool, stage: str) -> tuple[np.ndarray, str]:
    """The labels, and a digest of images and labels in their batches, which determine the random numbers.

    Raises:
        ValueError: If there are no images.
    """
    digest = hashlib.sha256()
    labels = [np.zeros(0, np.int32)]
    for images, batch in dataset:
        labels.append(batch.numpy().astype(np.int32))
        if digest_images:
            digest.update(f"{images.shape}".encode() + images.numpy().tobytes() + labels[-1].tobytes())
    if sum(map(len, labels)) == 0:
        raise ValueError(f"There must be at least one image to measure on. Received: an empty dataset for {stage!r}")
    return np.concatenate(labels), digest.hexdigest()


def _predictor(targets: Mapping[str, Network], dataset: tf.data.Dataset) -> Callable[[tf.Tensor], tf.Tensor]:
    def predict(images: tf.Tensor) -> tf.Tensor:
        classes = []
        for target in targets.values():
            logits = target(images, training=False)
            numbers = tf.reduce_all(tf.math.is_finite(logits), -1)
            classes.append(tf.where(numbers, tf.argmax(logits, -1), -1))
        return tf.stack(classes)

    if any(getattr(target, "remote", False) for target in targets.values()):
        return predict
    # One trace for all batches, including a smaller last one.
    compiled = tf.function(predict, input_signature=[dataset.element_spec[0]], autograph=False)
    return compiled.get_concrete_function()


def _check_finite(classes: np.ndarray, targets: Iterable[str]) -> None:
    broken = {name: int(count) for name, count in zip(targets, (classes < 0).sum(axis=1), strict=True) if count}
    if broken:
        raise FloatingPointError(
            "A network's logits must be finite numbers; did its training diverge? "
            f"Received: non-finite logits, for this many of {classes.shape[1]} images: {broken}"
        )


def _unchanged(images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return images


def _crafter(attack: Attack, dataset: tf.data.Dataset, network: Network) -> Network:
    signature = [*dataset.element_spec, tf.TensorSpec([], tf.float32), tf.TensorSpec([2], tf.int32)]

    @tf.function(input_signature=signature, autograph=False)
    def craft(images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return attack(network, images, labels, epsilon=epsilon, seed=seed)

    return craft.get_concrete_function()
