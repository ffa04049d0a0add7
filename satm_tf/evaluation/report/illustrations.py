"""What a report shows in addition to figures: pictures of adversarial images, and the loss around clean ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.attacks import Attack
from satm_tf.attacks.gallery import write_gallery
from satm_tf.evaluation.folder import ResultsFolder
from satm_tf.evaluation.masking import loss_surface
from satm_tf.evaluation.transfer import Network
from satm_tf.storage import write_text


def write_galleries(
    folder: str | Path,
    attacks: Mapping[str, Attack],
    *,
    source: str,
    network: Network,
    dataset: tf.data.Dataset,
    targets: Mapping[str, Network],
    class_names: Sequence[str],
    most: int = 3,
) -> None:
    """Writes a picture for each attack, at its own epsilon, into `gallery/`; existing ones are kept.

    The caption of each adversarial image gives every target's prediction.

    Args:
        folder: The folder of the report.
        attacks: The attacks, by name.
        source: Name of the network that crafts.
        network: The network that crafts.
        dataset: Batches of `(images, labels)`; the first images of the first are shown.
        targets: The networks that answer, by the names that are shown.
        class_names: The name of each label.
        most: How many images to show.
    """
    for name, attack in attacks.items():
        title = f"{name}, epsilon {attack.epsilon:g}, on {source}".replace("/", " ")
        path = ResultsFolder(folder).gallery / f"{title}.png"
        if not path.exists():
            write_answers(
                path,
                attack.compiled(network),
                dataset=dataset,
                targets=targets,
                class_names=class_names,
                title=title,
                most=most,
            )


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
        dataset: As `write_galleries` takes it.
        targets: As `write_galleries` takes them.
        class_names: The name of each label.
        title: The heading.
        most: How many images to show.
    """
    images, labels = (part[:most] for part in next(iter(dataset)))
    truth = [class_names[label] for label in labels]
    adversarial = craft(images, labels)
    answers = {name: np.argmax(target(adversarial, training=False), -1) for name, target in targets.items()}
    after = [
        "\n".join(
            f"{'✓' if answer[row] == label else '✗'} {name}: {class_names[answer[row]]}"
            for name, answer in answers.items()
        )
        for row, label in enumerate(labels.numpy())
    ]
    write_gallery(path, images, adversarial, truth, after, title=title)


def write_surfaces(
    folder: str | Path, networks: Mapping[str, Network], *, dataset: tf.data.Dataset, epsilon: float, seed: int = 0
) -> None:
    """Writes `surfaces.csv`: the frames of `loss_surface` around the first batch, with the column `network`.

    Args:
        folder: The folder of the report.
        networks: The networks, by name.
        dataset: Batches of `(images, labels)`.
        epsilon: How far to look.
        seed: Seed of the random signs.
    """
    images, labels = next(iter(dataset))
    surfaces = [
        loss_surface(network, images, labels, epsilon=epsilon, seed=seed).assign(network=name)
        for name, network in networks.items()
    ]
    write_text(ResultsFolder(folder).surfaces, pd.concat(surfaces).to_csv(index=False))
