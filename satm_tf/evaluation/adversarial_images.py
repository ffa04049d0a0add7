"""Adversarial images as PNG files, with a table and a picture of what they do to the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.attacks import Attack, as_uint8, distortion, quantise
from satm_tf.attacks.gallery import write_gallery
from satm_tf.storage import atomic_folder


def write_adversarial(
    folder: str | Path,
    model: Any,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    attack: Attack,
    epsilons: Sequence[float] | None = None,
    target: int | None = None,
    class_names: Sequence[str] = (),
    paths: Sequence[str] | None = None,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Attacks a model and writes the adversarial images, `results.csv` and a gallery for each epsilon.

    The images are made 8-bit before the attack and the PNGs after it, inside the ball; every figure in the table is
    measured on the PNGs as written. The folder appears as a whole or not at all.

    Args:
        folder: The folder to write, which must not exist.
        model: Model to logits `[batch, classes]`, which a gradient reaches if the attack needs one.
        images: Floats `[images, height, width, channels]` in [0, 1].
        labels: Integers `[images]`, the true ones; None if they are unknown, for an attack that needs none.
        attack: The attack.
        epsilons: In units of images in [0, 1]; the attack's own if None.
        target: The class to reach, for an attack with the label source "target".
        class_names: The name of each class; its number if there are none.
        paths: The file of each image, for the table.
        batch_size: Images at once.

    Returns:
        The table, one row for each epsilon and image: `attack`, `epsilon`, `file` (relative to the folder), `source`,
        `label`, `before` and `after` (the classes predicted), the sizes of the perturbation as `attacks.distortion`
        gives them, and `success`.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If images are outside [0, 1], or the attack does not apply to the model.

    Example:
        >>> table = write_adversarial("adversarial", model, images, labels, attack=attacks.PGD(epsilon=8 / 255))
        >>> table.success.mean()
        0.93
    """
    if Path(folder).exists():
        raise FileExistsError(f"{folder} exists; choose another folder. Received: {folder}")
    clean = quantise(images)
    known = np.zeros(len(clean), np.int32) if labels is None else np.asarray(labels, np.int32)
    sought = known if target is None else np.full_like(known, target)
    radii = list(epsilons or [attack.epsilon])
    crafted = attack.craft(model, clean, sought, epsilons=radii, batch_size=batch_size)
    before = _logits(model, clean, batch_size)
    classes = np.asarray(attack.classes(lambda *_, **__: tf.constant(before), tf.constant(clean), sought))

    def names(indices: np.ndarray) -> list[str]:
        return [class_names[index] if class_names else str(index) for index in indices]

    tables = []
    with atomic_folder(folder) as temporary:
        for epsilon, adversarial in zip(radii, crafted, strict=True):
            part = temporary / f"{attack.name}-{epsilon:g}"
            part.mkdir()
            written = _write_pngs(part, as_uint8(adversarial, clean))
            after = _logits(model, written, batch_size)
            table = pd.DataFrame(
                {
                    "attack": attack.name,
                    "epsilon": epsilon,
                    "file": [f"{part.name}/{_file_name(index)}" for index in range(len(clean))],
                    "source": "" if paths is None else paths,
                    "label": "" if labels is None else names(known),
                    "before": names(before.argmax(-1)),
                    "after": names(after.argmax(-1)),
                    **distortion(written, clean),
                    "success": np.asarray(attack.succeeds(tf.constant(after), tf.constant(classes))),
                }
            )
            title = f"{attack.name}, {attack.norm}, epsilon {epsilon:g}"
            shown = [table[column].tolist() for column in ("before", "after")]
            write_gallery(part / "gallery.png", clean, written, *shown, title=title)
            tables.append(table)
        result = pd.concat(tables, ignore_index=True)
        result.to_csv(temporary / "results.csv", index=False)
    return result


def _logits(model: Any, images: np.ndarray, batch_size: int) -> np.ndarray:
    starts = range(0, len(images), batch_size)
    batches = (tf.constant(images[start : start + batch_size]) for start in starts)
    return np.concatenate([np.asarray(model(batch, training=False), "float32") for batch in batches])


def _file_name(index: int) -> str:
    return f"{index:05d}.png"


def _write_pngs(folder: Path, images: np.ndarray) -> np.ndarray:
    """Writes the images, reads them again, and returns what was read, float32 in [0, 1]."""
    read = []
    for index, image in enumerate(images):
        path = str(folder / _file_name(index))
        tf.io.write_file(path, tf.io.encode_png(image))
        read.append(tf.io.decode_png(tf.io.read_file(path)).numpy() / np.float32(255))
    return np.stack(read)
