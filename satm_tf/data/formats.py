"""The data formats that every command accepts."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from satm_tf.configurable import look_up, unknown_name
from satm_tf.data import adience, folder, idx, imagenet, intake, synthetic, tables, unlabelled, utkface
from satm_tf.data.examples import ImageData


@dataclass(frozen=True, kw_only=True)
class Format:
    """What a folder of images may look like, and how it is read.

    Args:
        name: Its name in commands and configurations.
        description: One line of help.
        load: Reads a folder, given as `root`; its other parameters are the format's options.
        needs: The options without a default, each with its meaning.
        creates: Whether the folder may be missing, because loading writes it.
        labelled: Whether the images have labels.
        trainable: Whether there are images for training and validation, not only for measuring.
        packs: The options of each load that together read every file, for `satm_tf.prepare`; empty if there are no
            image files to prepare.
        crop: The central part that images of this format are prepared with, as `batches` takes it; None for all.
    """

    name: str
    description: str
    load: Callable[..., ImageData]
    needs: Mapping[str, str] = field(default_factory=dict)
    creates: bool = False
    labelled: bool = True
    trainable: bool = True
    packs: tuple[Mapping[str, Any], ...] = ({},)
    crop: float | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the loader's options."""
        return tuple(name for name in inspect.signature(self.load).parameters if name != "root")

    def check(self, given: Mapping[str, Any]) -> None:
        """Refuses options that the format does not take, and the lack of one that it needs."""
        for option in given:
            if option not in self.options:
                raise unknown_name(f"option of the data format {self.name!r}", option, self.options)
        for option, meaning in self.needs.items():
            if given.get(option) is None:
                raise ValueError(
                    f"Data of the format {self.name!r} needs `{option}`, {meaning}. Received: {given or 'none'}"
                )


def _synthetic_faces(
    root: str | os.PathLike[str],
    *,
    num_subjects: int = 480,
    images_per_subject: int = 5,
    fold: int = 0,
    target: str = "age",
    validation_share: float = 0.1,
    seed: int = 0,
) -> ImageData:
    synthetic.write_adience(root, num_subjects=num_subjects, images_per_subject=images_per_subject, seed=seed)
    return adience.load(root, fold=fold, target=target, validation_share=validation_share, seed=seed)


_BOTH_TARGETS = ({"target": "age"}, {"target": "gender"})

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Format(
                name="synthetic_faces",
                description="faces drawn by a program, written to the folder first if it does not exist",
                load=_synthetic_faces,
                creates=True,
                packs=_BOTH_TARGETS,
            ),
            Format(name="adience", description="Adience as it is published", load=adience.load, packs=_BOTH_TARGETS),
            Format(
                name="utkface",
                description="UTKFace, whose file names hold age and gender",
                load=utkface.load,
                packs=_BOTH_TARGETS,
            ),
            Format(name="folder", description="one sub-folder for each class", load=folder.load),
            Format(
                name="table",
                description="images that a CSV file names, with the columns path and label",
                load=tables.load,
                needs={"table": "the CSV file"},
            ),
            Format(name="idx", description="MNIST and data sets like it, in IDX files", load=idx.load, packs=()),
            Format(
                name="imagenet",
                description="validation images in one sub-folder for each synset",
                load=imagenet.load,
                needs={"synsets": "the file that numbers the synsets"},
                trainable=False,
                crop=imagenet.CROP,
            ),
            Format(
                name="images",
                description="image files without labels",
                load=unlabelled.load,
                labelled=False,
                trainable=False,
            ),
        )
    }
)
"""All formats, by name."""


def options(name: str) -> tuple[str, ...]:
    """The names of the options that a format takes.

    Raises:
        ValueError: if there is no such format; the message gives the nearest.

    Example:
        >>> options("imagenet")
        ('synsets', 'count', 'seed')
    """
    return look_up("data format", name, FORMATS).options


def load(name: str, root: str | os.PathLike[str], **options: Any) -> ImageData:
    """Reads a folder of images in one of the formats.

    Args:
        name: The format, one of `FORMATS`.
        root: The folder.
        **options: The format's options.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: if the folder, or a file that the format needs, does not exist.
        ValueError: if the format or an option is unknown (the message gives the nearest), an option is missing, or the
            loader refuses what it finds.

    Example:
        >>> data = load("adience", "~/adience", fold=1)
    """
    entry = look_up("data format", name, FORMATS)
    if not entry.creates:
        intake.existing_folder(root)
    entry.check(options)
    return entry.load(root=root, **options)


def load_to_measure(name: str, root: str | os.PathLike[str], split: str | None, **options: Any) -> ImageData:
    """As `load`, but images of the format "folder" that are in no split folder are all in `test`.

    Args:
        name: The format.
        root: The folder.
        split: The split to measure on; None for `test`, or for every image if there are no splits.
        **options: The format's options.

    Raises:
        FileNotFoundError: As `load` does.
        ValueError: As `load` does, or if a sub-folder is none of the `class_names`.

    Example:
        >>> len(load_to_measure("folder", "photos", None).test)
        60
    """
    place = Path(root).expanduser()
    within = {item.name for item in place.iterdir() if item.is_dir()} if place.is_dir() else set()
    undivided = name == "folder" and within and not {"train", "test"} <= within
    if not undivided or not (split is None or (split == "test" and "test" in within)):
        return load(name, root, **options)
    FORMATS[name].check(options)
    place = place / "test" if "test" in within else place
    folders = folder.class_folders(place)
    names = tuple(options.get("class_names") or folders)
    if unknown := sorted(set(folders) - set(names)):
        raise ValueError(f"Each sub-folder of {place} must be one of the class_names. Received: {unknown}")
    every = unlabelled.load(place)
    paths = [] if every.test.paths is None else every.test.paths.tolist()
    tops = [Path(path).relative_to(place.resolve()).parts[0] for path in paths]
    inside = [row for row, top in enumerate(tops) if top in names]
    if not inside:
        raise ValueError(f"A folder of images needs a sub-folder for each class. Received: {place}, which has none")
    labels = np.array([names.index(tops[row]) for row in inside], np.int32)
    test = replace(every.test.select(inside), labels=labels)
    return replace(every, test=test, class_names=names, ordered=bool(options.get("ordered", False)))
