"""The paper's figures, drawn from our runs: each a PNG with its numbers as CSV next to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf import data
from satm_tf.attacks import Attack
from satm_tf.evaluation.names import NetworkName
from satm_tf.evaluation.report.figures import lines
from satm_tf.experiment.config import Config
from satm_tf.experiment.images import make_batches
from satm_tf.experiment.run_folder import RunFolder
from satm_tf.models import ImageClassifier
from satm_tf.paper.measuring import resolve, stage_of
from satm_tf.paper.tables import READINGS, Figure
from satm_tf.storage import atomic_file, read_csv, write_text


def draw_curves(figure: Figure, config: Config, folders: Sequence[RunFolder], reading: str, path: Path) -> None:
    """Figures 3 and 4: clean and adversarial accuracy over epochs, the mean over runs.

    Args:
        figure: The figure.
        config: The configuration of the runs.
        folders: The runs, whose `metrics.csv` is read.
        reading: One of `READINGS`.
        path: The PNG.
    """
    columns: dict[str, pd.Series] = {}
    for name in figure.networks:
        full = resolve(config, name, reading)
        scheme, network = NetworkName.parse(name)
        metrics = pd.concat([read_csv(folder.metrics) for folder in folders])
        # Keras counts epochs from 0.
        rows = metrics[metrics.stage == str(stage_of(full))]
        epochs = rows.assign(epoch=rows.epoch + 1).groupby("epoch")
        for kind, middle in (("clean", ""), ("adversarial", "_adversarial")):
            columns[f"{scheme}, {kind}"] = epochs[f"{figure.split}{network}{middle}_accuracy"].mean()
    colours = {name: place // 2 for place, name in enumerate(columns)}
    path.parent.mkdir(parents=True, exist_ok=True)
    lines(
        pd.DataFrame(columns),
        path,
        figure.title,
        x="epoch",
        y="accuracy",
        rate=True,
        dashed=[name for name in columns if name.endswith("adversarial")],
        groups=colours,
    )


def draw_gallery(
    figure: Figure, config: Config, images: data.ImageData, folder: RunFolder, reading: str, path: Path
) -> None:
    """Figure 1: for each epsilon, a correctly classified test image and its misclassified adversarial example.

    Args:
        figure: The figure.
        config: The configuration of the run.
        images: Its images.
        folder: The run, with the network.
        reading: One of `READINGS`.
        path: The PNG. The panel of an epsilon that fools the network on no image stays empty.
    """
    # Imported here, because only pictures need it.
    from matplotlib.figure import Figure as Canvas

    name = resolve(config, figure.networks[0], reading)
    network = folder.load(stage_of(name), name.network)
    attack = config.table_attacks()[READINGS[reading]]
    canvas = Canvas(figsize=(6.6, 4.6), layout="constrained")
    parts = np.asarray(canvas.subfigures(2, 2)).flat
    rows: list[tuple[float, int, str, str]] = []
    used: set[int] = set()
    for part, epsilon in zip(parts, figure.epsilons, strict=True):
        found = _fooled(network, attack, make_batches(images.test, config), epsilon, config.seed, used)
        title = f"epsilon {256 * epsilon:g}/256"
        if found is None:
            part.suptitle(f"{title}: no image is misclassified", fontsize=9)
            continue
        index, clean, adversarial, *classes = found
        label, predicted = (images.class_names[each] for each in classes)
        used.add(index)
        rows.append((epsilon, index, label, predicted))
        part.suptitle(title, fontsize=10)
        # As in the paper: the adversarial image on the left, the clean one on the right.
        shown = (adversarial, f"predicted: {predicted}"), (clean, f"clean: {label}")
        for axes, (image, text) in zip(part.subplots(1, 2), shown, strict=True):
            axes.imshow(image, vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(text, fontsize=9)
    with atomic_file(path) as temporary:
        canvas.savefig(temporary, dpi=160, format="png")
    columns = ["epsilon", "test_image", "label", "adversarial_as"]
    write_text(path.with_suffix(".csv"), pd.DataFrame(rows, columns=columns).to_csv(index=False))


def _fooled(
    network: ImageClassifier, attack: Attack, batches: tf.data.Dataset, epsilon: float, seed: int, used: set[int]
) -> tuple[int, np.ndarray, np.ndarray, int, int] | None:
    """The first unused image that is classified correctly while its adversarial example is not."""
    start = 0
    for number, (images, labels) in enumerate(batches):
        adversarial = attack(network, images, labels, epsilon=epsilon, seed=tf.constant([seed, number]))
        before, after = (np.argmax(network(shown, training=False), -1) for shown in (images, adversarial))
        for row in np.flatnonzero((before == labels.numpy()) & (after != labels.numpy())):
            if start + int(row) not in used:
                pictures = images[row].numpy(), adversarial[row].numpy()
                return start + int(row), *pictures, int(labels[row]), int(after[row])
        start += len(labels)
    return None
