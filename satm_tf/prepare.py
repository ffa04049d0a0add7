"""satm-tf prepare: decodes and packs images once, for fast reading."""

from __future__ import annotations

import sys
from typing import Any

from satm_tf import command_line
from satm_tf.configurable import look_up
from satm_tf.data import Account, formats, prepared


def prepare(
    *,
    format: str,
    root: str,
    output: str,
    image_size: int = 224,
    crop: float | None = None,
    data: dict[str, Any] | None = None,
) -> Account:
    """Decodes, resizes and packs all images of a data set. Re-run the same command to resume or to verify.

    For Adience, this packs all five folds. For Adience and UTKFace, it packs every image that is used for age or for
    gender.

    Args:
        format: adience, utkface, folder, table, imagenet, images or synthetic_faces, as for the other commands.
        root: The folder of the images.
        output: The folder to write.
        image_size: Height and width of the packed images.
        crop: The side of the central square to use, as a share of the shorter side; null is the whole image, or 0.875
            for imagenet.
        data: Options of the format, such as {"table": "faces.csv"} for table or {"variant": "faces"} for adience.

    Returns:
        The account of the files.

    Raises:
        ValueError: If the format or an option is unknown, the format has no image files, or the output holds images
            packed with other options.
        FileNotFoundError: If a folder or file is missing.
    """
    entry = look_up("data format", format, formats.FORMATS)
    if not entry.packs:
        raise ValueError(f"The format {format!r} has no image files to pack; use it directly. Received: {format!r}")
    loaded = [formats.load(format, root, **{**(data or {}), **options}) for options in entry.packs]
    for images in loaded:
        print(images.account)
    splits = [split for images in loaded for split in (images.train, images.validation, images.test)]
    crop = entry.crop if crop is None else crop
    account = prepared.pack(splits, output, root=root, image_size=image_size, crop=crop)
    print(account)
    return account


main = command_line.command(prepare, resumes=True)

if __name__ == "__main__":
    sys.exit(main(None))
