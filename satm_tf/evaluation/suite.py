"""Frozen adversarial images: a folder with a manifest of digests, on which any model is scored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf import storage
from satm_tf.evaluation.assessment import Assessment
from satm_tf.evaluation.folder import ResultsFolder
from satm_tf.evaluation.leaking import label_leaking
from satm_tf.evaluation.predictions import CLEAN, Cell, Predictions, concatenate
from satm_tf.evaluation.transfer import Classifier, measure

MANIFEST = "suite.json"
FORMAT, VERSION = "satm_tf adversarial suite", 1
# Parts of a path inside the folder, on any system.
_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*(/[A-Za-z0-9_+-][A-Za-z0-9_.+-]*)*")


class SuiteCell(NamedTuple):
    """The examples of one source, attack and epsilon."""

    source: str  # the network that crafted, with the name of its rung in front
    attack: str
    epsilon: float
    rows: list[int]  # which of the suite's images each example was made from
    files: list[str]  # the file of each example, relative to the folder
    options: dict[str, Any]  # the attack, as `attacks.serialize` gives it


@dataclass(frozen=True)
class Suite:
    """Clean images with labels, and adversarial examples of them that fool the networks they were crafted on.

    Args:
        folder: Its folder.
        class_names: The name of each class, in the order of the labels.
        image_shape: `(height, width, channels)` of all images.
        labels: The label of each image.
        files: The file of each clean image, relative to the folder.
        cells: The examples. An image without one, because the attack failed on its source, is used unchanged.
        digest: The SHA-256 of the manifest, and so of all files. Empty for a suite that is not yet written.

    Example:
        >>> suite = read_suite("suite")
        >>> suite.score({"mine": satm_tf.models.load_model("mine.keras")}).frame()
    """

    folder: Path
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    labels: list[int]
    files: list[str]
    cells: list[SuiteCell]
    digest: str = ""

    def __str__(self) -> str:
        examples = sum(len(cell.rows) for cell in self.cells)
        return (
            f"Suite {self.folder.name}: {len(self.files):,} images, {examples:,} adversarial examples of "
            f"{len(self.cells)} attacks and sources, digest {self.digest}"
        )

    def write(self) -> str:
        """Writes the manifest next to the files, which must exist; returns the digest."""
        described = {
            "format": FORMAT,
            "version": VERSION,
            "class_names": list(self.class_names),
            "image_shape": list(self.image_shape),
            "images": [
                {"file": file, "label": label, "sha256": storage.sha256(self.folder / file)}
                for file, label in zip(self.files, self.labels, strict=True)
            ],
            "cells": [
                {
                    "source": cell.source,
                    "attack": cell.attack,
                    "epsilon": cell.epsilon,
                    "options": cell.options,
                    "examples": [
                        {"image": row, "file": file, "sha256": storage.sha256(self.folder / file)}
                        for row, file in zip(cell.rows, cell.files, strict=True)
                    ],
                }
                for cell in self.cells
            ],
        }
        # JSON has no word for an unbounded epsilon.
        described = json.loads(json.dumps(described), parse_constant=str)
        digest = _digest(described)
        storage.write_json(self.folder / MANIFEST, {"digest": digest, **described})
        return digest

    def check(self, targets: Mapping[str, Classifier]) -> None:
        """Raises a ValueError if a model has another number of classes, or takes images of another shape."""
        for name, target in targets.items():
            shape = tuple(getattr(target, "image_shape", self.image_shape))
            if target.num_classes != len(self.class_names) or shape != self.image_shape:
                raise ValueError(
                    f"The suite has {len(self.class_names)} classes and images of shape {self.image_shape}. "
                    f"Received: {name}, with {target.num_classes} classes and images of shape {shape}"
                )

    def score(
        self, targets: Mapping[str, Classifier], *, batch_size: int = 50, folder: str | Path | None = None
    ) -> Predictions:
        """The class that each target predicts for the clean images and under each attack of each source.

        Args:
            targets: Models to logits `[batch, classes]`, by name, with the suite's classes and image shape.
            batch_size: Images in a batch.
            folder: Where finished parts are kept, as `measure` takes it.

        Raises:
            ValueError: As `check` does.
            FloatingPointError: If a target's logits are not finite.
        """
        self.check(targets)
        labels = np.array(self.labels, np.int32)

        def measured(stage: str, files: Sequence[str], rows: Sequence[int]) -> Predictions:
            paths = [str(self.folder / file) for file in files]
            dataset = tf.data.Dataset.from_tensor_slices((paths, labels[np.array(rows, int)]))
            dataset = dataset.map(lambda path, label: (self._read(path), label)).batch(batch_size)
            return measure(sources={}, targets=targets, dataset=dataset, attacks={}, folder=folder, stage=stage)

        clean = measured(CLEAN, self.files, range(len(labels)))
        parts = [clean]
        for cell in self.cells:
            predicted = clean.predicted.copy()
            if cell.rows:
                predicted[:, cell.rows] = measured(f"{cell.source} {cell.attack}", cell.files, cell.rows).predicted
            cells = pd.DataFrame([Cell(cell.attack, cell.epsilon, cell.source, target) for target in targets])
            parts.append(Predictions(cells, predicted, labels, clean.num_classes))
        return concatenate(parts)

    def assess(
        self, targets: Mapping[str, Classifier], *, folder: str | Path, config: Mapping[str, Any], batch_size: int = 50
    ) -> Assessment:
        """Scores the targets and writes what `ResultsFolder` names, for a report.

        The folder is claimed for the configuration, and finished parts are reused. Targets are as for `score`.

        Raises:
            ValueError: As `check` does, or if the folder is another configuration's.
            FloatingPointError: If a target's logits are not finite.
        """
        self.check(targets)
        files = ResultsFolder(folder)
        storage.claim(files.path, config)
        predictions = self.score(targets, batch_size=batch_size, folder=files.blocks)
        results = predictions.frame(ordered=False)
        predictions.save(files.predictions)
        storage.write_text(files.results, results.to_csv(index=False))
        storage.write_text(files.data, str(self))
        storage.write_json(files.class_names, list(self.class_names))
        return Assessment(predictions, results, label_leaking(predictions), folder=files)

    def _read(self, path: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_png(tf.io.read_file(path), channels=self.image_shape[2])
        return tf.ensure_shape(tf.cast(pixels, tf.float32) / 255.0, self.image_shape)


def read_suite(folder: str | Path) -> Suite:
    """Reads a suite after checking that no file has changed since it was written.

    Args:
        folder: The folder of `suite.json`, as `satm-tf attack` writes it.

    Raises:
        FileNotFoundError: If there is no suite, or a file of it is missing.
        ValueError: If something was changed or truncated, or another program or release wrote it. The message names it.

    Example:
        >>> read_suite("suite").digest[:12]
        '2c0d6a1f7a33'
    """
    folder = Path(folder).expanduser()
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"A suite is a folder with a {MANIFEST}, as `satm-tf attack` writes for images with labels. Received: "
            f"{folder}"
        )
    found = storage.read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"This is not an adversarial suite: its `format` must be {FORMAT!r}. Received: {path}")
    if found.get("version") != VERSION:
        raise ValueError(f"This release reads version {VERSION} of suites. Received: {found.get('version')} in {path}")
    digest = _digest({key: value for key, value in found.items() if key != "digest"})
    if digest != found.get("digest"):
        raise ValueError(
            f"{path} was changed after it was written; copy the suite again. "
            f"Received: digest {digest}, not {found.get('digest')}"
        )
    try:
        suite = _suite(folder, found)
        files = [*found["images"], *(each for cell in found["cells"] for each in cell["examples"])]
        written = {str(each["file"]): str(each["sha256"]) for each in files}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a suite. Received: {type(error).__name__}: {error}") from error
    for file, expected in written.items():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"A file of the suite is missing; copy the suite again. Received: {folder / file}")
        if storage.sha256(folder / file) != expected:
            raise ValueError(f"A file of the suite was changed or truncated; copy it again. Received: {folder / file}")
    return suite


def check_name(name: str, what: str) -> None:
    """Raises a ValueError unless a name can be a path inside a suite, on any system."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"The name of {what} becomes a folder name, so it may contain only letters, digits and . _ + - between "
            f"slashes. Received: {name!r}"
        )


def _suite(folder: Path, found: Mapping[str, Any]) -> Suite:
    height, width, channels = map(int, found["image_shape"])
    labels = [int(image["label"]) for image in found["images"]]
    files = [str(image["file"]) for image in found["images"]]
    cells = [
        SuiteCell(
            source=str(cell["source"]),
            attack=str(cell["attack"]),
            epsilon=float(cell["epsilon"]),
            rows=[int(each["image"]) for each in cell["examples"]],
            files=[str(each["file"]) for each in cell["examples"]],
            options=dict(cell["options"]),
        )
        for cell in found["cells"]
    ]
    for file in [*files, *(file for cell in cells for file in cell.files)]:
        check_name(file, "a file")
    classes = tuple(map(str, found["class_names"]))
    if not labels or not all(0 <= label < len(classes) for label in labels):
        raise ValueError(f"there must be images, with labels of {len(classes)} classes")
    if any(not 0 <= row < len(labels) for cell in cells for row in cell.rows):
        raise ValueError(f"an example must be of one of the {len(labels)} images")
    return Suite(folder, classes, (height, width, channels), labels, files, cells, str(found["digest"]))


def _digest(described: Mapping[str, Any]) -> str:
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
