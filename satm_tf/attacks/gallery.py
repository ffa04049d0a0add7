"""A picture of adversarial examples, in the manner of Figure 1 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from satm_tf.storage import atomic_file

_TITLES = ("clean", "adversarial", "difference")


def write_gallery(
    path: str | Path,
    images: Any,
    adversarial: Any,
    before: Sequence[str],
    after: Sequence[str],
    *,
    title: str,
    most: int = 8,
) -> None:
    """Writes a PNG with a row for each image: clean, adversarial, their difference magnified, labels under them.

    Args:
        path: The file, which is overwritten.
        images: Floats `[images, height, width, channels]` in [0, 1], the clean ones.
        adversarial: Floats like `images`.
        before: The predicted class of each clean image.
        after: The predicted class of each adversarial image, red where it differs; or several lines, in black.
        title: The heading, such as the attack and its epsilon.
        most: How many images to show, the first ones.

    Example:
        >>> write_gallery("gallery.png", images, adversarial, before, after, title="FGSM, epsilon 16/256")
    """
    # Imported here, because attacks themselves do not need Matplotlib.
    from matplotlib.figure import Figure

    images, adversarial = np.asarray(images)[:most], np.asarray(adversarial)[:most]
    difference = adversarial - images
    largest = np.abs(difference).max(initial=1e-12)
    magnified = 0.5 + difference / (2 * largest)
    figure = Figure(figsize=(6.6, 0.5 + 2.3 * len(images)), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(images), 3, squeeze=False)
    for row, (cells, *shown) in enumerate(zip(grid, images, adversarial, magnified, strict=True)):
        for cell, picture, name in zip(cells, shown, _TITLES, strict=True):
            cell.imshow(picture.squeeze(), vmin=0, vmax=1, cmap="gray", interpolation="nearest")
            cell.set(xticks=[], yticks=[], title=name if row == 0 else "")
        fooled = "tab:red" if before[row] != after[row] and "\n" not in after[row] else "black"
        cells[0].set_xlabel(before[row])
        cells[1].set_xlabel(after[row], color=fooled)
        cells[2].set_xlabel(f"x {0.5 / largest:.0f} around grey")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
