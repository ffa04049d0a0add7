"""Adversarial images as PNG files, with a table and a picture of what they do to the model."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf.attacks import Attack, as_uint8, distortion, quantise, serialize
from satm_tf.attacks.gallery import write_gallery
from satm_tf.evaluation.predictions import CLEAN
from satm_tf.evaluation.suite import Suite, SuiteCell, check_name
from satm_tf.storage import atomic_folder


def write_adversarial(
    folder: str | Path,
    sources: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    attacks: Mapping[str, Attack],
    epsilons: Mapping[str, Sequence[float]] | None = None,
    target: int | None = None,
    class_names: Sequence[str] = (),
    paths: Sequence[str] | None = None,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Attacks models and writes the adversarial images, `results.csv` and a gallery for each attack and epsilon.

    The images are made 8-bit before the attack and the PNGs after it, inside the ball; every figure in the table is
    measured on the PNGs as written. If the images have labels, a suite for `read_suite` is written too: the clean
    images, and the adversarial ones that fool the model they were made on. The folder appears as a whole or not at all.

    Args:
        folder: The folder to write, which must not exist.
        sources: Models that return logits `[batch, classes]`, by name; differentiable if the attack needs gradients. A
            name `<rung>/<network>` puts the suite's results on that rung.
        images: Floats `[images, height, width, channels]` in [0, 1].
        labels: Integers `[images]`, the true classes; None if unknown, for an attack that needs no labels.
        attacks: The attacks, by name.
        epsilons: The epsilons of an attack, by its name, in units of images in [0, 1]; an attack that is not listed
            uses its own.
        target: The class to reach, for an attack with the label source "target".
        class_names: The name of each class; if not given, its number.
        paths: The file of each image, for the table.
        batch_size: Images per batch.

    Returns:
        The table, one row for each source, attack, epsilon and image: `network`, `attack`, `epsilon`, `file` (relative
        to the folder), `source`, `label`, `before` and `after` (the classes predicted), the sizes of the perturbation
        as `attacks.distortion` gives them, and `success`.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If images are outside [0, 1], an attack does not apply to a model, or a name cannot be a folder's.

    Example:
        >>> table = write_adversarial("adversarial", {"unseen/resnet": model}, images, labels,
        ...                           attacks={"pgd": attacks.PGD(epsilon=8 / 255)})
        >>> table.success.mean()
        0.93
    """
    if Path(folder).exists():
        raise FileExistsError(f"{folder} exists; choose another folder. Received: {folder}")
    for what, names in (("a source", sources), ("an attack", attacks)):
        for name in names:
            check_name(name, what)
    clean = quantise(images)
    known = np.zeros(len(clean), np.int32) if labels is None else np.asarray(labels, np.int32)
    sought = known if target is None else np.full_like(known, target)

    def named(indices: np.ndarray) -> list[str]:
        return [class_names[index] if class_names else str(index) for index in indices]

    tables, cells = [], []
    with atomic_folder(folder) as temporary:
        for (source, model), (name, attack) in itertools.product(sources.items(), attacks.items()):
            radii = list((epsilons or {}).get(name, [attack.epsilon]))
            before = _logits(model, clean, batch_size)
            # The model has already been asked.
            answered = functools.partial(lambda logits, *_, **__: logits, tf.constant(before))
            classes = np.asarray(attack.classes(answered, tf.constant(clean), sought))
            crafted = attack.craft(model, clean, sought, epsilons=radii, batch_size=batch_size)
            for epsilon, adversarial in zip(radii, crafted, strict=True):
                part = temporary / source / f"{name}-{epsilon:g}"
                part.mkdir(parents=True)
                files = [str((part / _file_name(index)).relative_to(temporary)) for index in range(len(clean))]
                written = _write_pngs(part, as_uint8(adversarial, clean))
                after = _logits(model, written, batch_size)
                table = pd.DataFrame(
                    {
                        "network": source,
                        "attack": name,
                        "epsilon": epsilon,
                        "file": files,
                        "source": "" if paths is None else paths,
                        "label": "" if labels is None else named(known),
                        "before": named(before.argmax(-1)),
                        "after": named(after.argmax(-1)),
                        **distortion(written, clean),
                        "success": np.asarray(attack.succeeds(tf.constant(after), tf.constant(classes))),
                    }
                )
                title = f"{name}, {attack.norm}, epsilon {epsilon:g}"
                shown = [table[column].tolist() for column in ("before", "after")]
                write_gallery(part / "gallery.png", clean, written, *shown, title=title)
                tables.append(table)
                rows = np.flatnonzero(after.argmax(-1) != known).tolist()
                cells.append(SuiteCell(source, name, epsilon, rows, [files[row] for row in rows], serialize(attack)))
        result = pd.concat(tables, ignore_index=True)
        result.to_csv(temporary / "results.csv", index=False)
        if labels is not None:
            (temporary / CLEAN).mkdir()
            _write_pngs(temporary / CLEAN, as_uint8(clean, clean))
            Suite(
                temporary,
                tuple(class_names or map(str, range(before.shape[-1]))),
                clean.shape[1:],
                known.tolist(),
                [f"{CLEAN}/{_file_name(index)}" for index in range(len(clean))],
                cells,
            ).write()
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
