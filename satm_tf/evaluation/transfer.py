"""Who fools whom: adversarial examples of every source on every target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm.auto import tqdm

from satm_tf.attacks import Attack
from satm_tf.metrics import classification_rate, confusion_matrix, one_off_rate
from satm_tf.models import ImageClassifier

CLEAN = "clean"


def transfer_matrix(
    *,
    sources: Mapping[str, Callable[..., tf.Tensor]],
    targets: Mapping[str, ImageClassifier],
    dataset: tf.data.Dataset,
    attacks: Mapping[str, Attack],
    ordered: bool = True,
    seed: int = 0,
    stage: str = "transfer matrix",
) -> pd.DataFrame:
    """Measures every target on clean images and on the adversarial examples of every source.

    A source's examples are crafted once per attack and shown to all targets. A target that is also a source is
    attacked as a white box in that row.

    Args:
        sources: The networks that craft, by name.
        targets: The networks that are measured, by name, all with the same number of classes.
        dataset: Batches of `(images, labels)`: float images in [0, 1], integer labels.
        attacks: The attacks, by the name that the frame shall show; "clean" is taken.
        ordered: Whether the classes are ordered; if not, the one-off rate has no meaning and is NaN.
        seed: Seed of the attacks' random numbers; each batch draws its own.
        stage: What the progress bar is called.

    Returns:
        A tidy frame, one row per attack, source and target, the clean rows first, with columns `attack`, `epsilon`,
        `source`, `target`, `classification_rate`, `one_off_rate` (shares in [0, 1]) and `images`. A clean row has
        attack "clean", epsilon 0 and an empty source.

    Raises:
        ValueError: If there is nothing to measure on, or an attack is called "clean".

    Example:
        >>> frame = transfer_matrix(sources={"a": a}, targets={"a": a, "b": b}, dataset=test,
        ...                         attacks={"fgsm": FGSM(epsilon=0.1)})
        >>> frame[(frame.source == "a") & (frame.target == "b")]
    """
    if CLEAN in attacks:
        raise ValueError(f"The name {CLEAN!r} stands for no attack at all; choose another. Received: {list(attacks)}")
    if not targets:
        raise ValueError("There must be at least one target. Received: none")
    num_classes = next(iter(targets.values())).num_classes
    labels = np.concatenate([np.zeros(0, np.int32), *(batch.numpy() for _, batch in dataset)])
    if not labels.size:
        raise ValueError("There must be at least one image to measure on. Received: an empty dataset")
    # One trace for all batches, the last and smaller one too.
    signature = [*dataset.element_spec, tf.TensorSpec([2], tf.int32)]

    @tf.function(input_signature=signature[:1])
    def predict(images: tf.Tensor) -> tf.Tensor:
        return tf.stack([tf.argmax(target(images, training=False), -1) for target in targets.values()])

    crafters: dict[tuple[str, str], Callable[..., tf.Tensor]] = {(CLEAN, ""): lambda images, labels, seed: images}
    for name, attack in attacks.items():
        crafters |= {(name, source): _crafter(attack, network, signature) for source, network in sources.items()}

    rows = []
    with tqdm(total=len(crafters) * len(dataset), desc=stage, unit="batch", dynamic_ncols=True, disable=None) as bar:
        for (name, source), craft in crafters.items():
            predictions = []
            for index, (images, batch) in enumerate(dataset):
                predictions.append(predict(craft(images, batch, tf.constant([seed, index]))).numpy())
                bar.update()
            for target, predicted in zip(targets, np.concatenate(predictions, axis=1), strict=True):
                matrix = confusion_matrix(labels, predicted, num_classes)
                rows.append(
                    {
                        "attack": name,
                        "epsilon": attacks[name].epsilon if name in attacks else 0.0,
                        "source": source,
                        "target": target,
                        "classification_rate": classification_rate(matrix),
                        "one_off_rate": one_off_rate(matrix) if ordered else float("nan"),
                        "images": int(labels.size),
                    }
                )
    return pd.DataFrame(rows)


def _crafter(
    attack: Attack, network: Callable[..., tf.Tensor], signature: list[tf.TensorSpec]
) -> Callable[..., tf.Tensor]:
    @tf.function(input_signature=signature)
    def craft(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return attack(network, images, labels, seed=seed)

    return craft
