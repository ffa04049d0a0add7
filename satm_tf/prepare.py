"""python -m satm_tf.prepare: decodes and packs images once, for fast reading."""

from __future__ import annotations

import sys
from typing import Literal

import jsonargparse

from satm_tf import command_line
from satm_tf.data import ImageData, prepared
from satm_tf.data import adience as adience_files
from satm_tf.data import folder as folder_files
from satm_tf.data import imagenet as imagenet_files
from satm_tf.data import tables as table_files


def adience(*, root: str, output: str, image_size: int = 224, variant: Literal["aligned", "faces"] = "aligned") -> None:
    """Prepares Adience: all five folds, for age and for gender.

    Args:
        root: The folder with the fold files and the images.
        output: The folder to put the prepared images into.
        image_size: Height and width of the prepared images.
        variant: Which of the two crops that the data set comes in.
    """
    targets = [adience_files.load(root, target=target, variant=variant) for target in ("age", "gender")]
    _pack(targets, root, output, image_size)


def folder(*, root: str, output: str, image_size: int = 224, crop: float | None = None) -> None:
    """Prepares a folder of images with one sub-folder a class.

    Args:
        root: The folder.
        output: The folder to put the prepared images into.
        image_size: Height and width of the prepared images.
        crop: The side of the central square to use, as a share of the shorter side.
    """
    _pack([folder_files.load(root)], root, output, image_size, crop)


def table(*, table: str, root: str, output: str, image_size: int = 224, crop: float | None = None) -> None:
    """Prepares the images that a table names.

    Args:
        table: The CSV file, with the columns path and label.
        root: The folder of the images.
        output: The folder to put the prepared images into.
        image_size: Height and width of the prepared images.
        crop: The side of the central square to use, as a share of the shorter side.
    """
    _pack([table_files.load(table, root)], root, output, image_size, crop)


def imagenet(
    *, root: str, synsets: str, output: str, image_size: int = 224, count: int = 10_000, seed: int = 0
) -> None:
    """Prepares validation images of ImageNet, their central part.

    Args:
        root: The folder with a sub-folder a synset.
        synsets: The file that numbers the synsets.
        output: The folder to put the prepared images into.
        image_size: Height and width of the prepared images.
        count: How many images to choose.
        seed: What the choice follows from.
    """
    data = imagenet_files.load(root, synsets=synsets, count=count, seed=seed)
    _pack([data], root, output, image_size, imagenet_files.CROP)


def _pack(sets: list[ImageData], root: str, output: str, image_size: int, crop: float | None = None) -> None:
    for data in sets:
        print(data.account)
    splits = [split for data in sets for split in (data.train, data.validation, data.test)]
    print(prepared.pack(splits, output, root=root, image_size=image_size, crop=crop))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return command_line.run(
        lambda given: jsonargparse.CLI(
            [adience, folder, table, imagenet],
            args=given,
            prog="python -m satm_tf.prepare",
            description=__doc__,
            epilog=command_line.EPILOG,
        ),
        arguments,
        goes_on=True,
    )


if __name__ == "__main__":
    sys.exit(main())
