"""What a report shows in addition to figures: pictures of adversarial images, and the loss around clean ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.attacks import Attack
from satm_tf.attacks.gallery import write_gallery
from satm_tf.evaluation.masking import loss_surface
from satm_tf.evaluation.transfer import Network
from satm_tf.storage import write_text


def write_galleries(
    folder: Path,
    attacks: Mapping[str, Attack],
    *,
    source: str,
    network: Network,
    dataset: tf.data.Dataset,
    targets: Mapping[str, Network],
    class_names: Sequence[str],
) -> None:
    """Writes a picture for each attack, at its own epsilon; existing ones are kept.

    `source` is the name of the network that crafts; for the others see `write_answers`.
    """
    shown: Any = {"dataset": dataset, "targets": targets, "class_names": class_names}
    for name, attack in attacks.items():
        title = f"{name}, epsilon {attack.epsilon:g}, on {source}".replace("/", " ")
        path = folder / f"{title}.png"
        if not path.exists():
            write_answers(path, attack.compiled(network), title=title, **shown)


def write_answers(
    path: str | Path,
    craft: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    *,
    dataset: tf.data.Dataset,
    targets: Mapping[str, Network],
    class_names: Sequence[str],
    title: str,
    most: int = 3,
) -> None:
    """Writes a picture of adversarial images with every target's prediction.

    Args:
        path: The file.
        craft: Makes adversarial images from images and labels.
        dataset: Batches of `(images, labels)`; the first images of the first are shown.
        targets: The networks that answer, by the names that are shown.
        class_names: The name of each label.
        title: The heading.
        most: How many images to show.
    """
    images, labels = (part[:most] for part in next(iter(dataset)))
    adversarial = craft(images, labels)
    answers = {name: np.argmax(target(adversarial, training=False), -1) for name, target in targets.items()}
    after = [
        "\n".join(
            f"{'✓' if own[row] == label else '✗'} {name}: {class_names[own[row]]}" for name, own in answers.items()
        )
        for row, label in enumerate(labels.numpy())
    ]
    write_gallery(path, images, adversarial, [class_names[label] for label in labels], after, title=title)


def write_surfaces(
    path: Path, networks: Mapping[str, Network], *, dataset: tf.data.Dataset, epsilon: float, seed: int
) -> None:
    """Writes `surfaces.csv`: the frames of `loss_surface` around the first batch, with the column `network`."""
    images, labels = next(iter(dataset))
    surfaces = [
        loss_surface(network, images, labels, epsilon=epsilon, seed=seed).assign(network=name)
        for name, network in networks.items()
    ]
    write_text(path, pd.concat(surfaces).to_csv(index=False))
