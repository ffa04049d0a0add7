"""Splits into training, validation and test images, with no subject in two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from satm_tf.data.account import Account
from satm_tf.data.examples import Examples, ImageData


def by_subject(subjects: NDArray[Any] | pd.Series, share: float, seed: int) -> NDArray[np.bool_]:
    """Draws whole subjects until they make up `share` of the images, as nearly as possible.

    Args:
        subjects: The subject of each image, str `[n]`. If subjects are unknown, a different name for each image.
        share: The part of the images to draw, above 0 and below 1.
        seed: Seed of the draw.

    Returns:
        bool `[n]`: whether the image was drawn. At least one subject is, and at least one is not.

    Raises:
        ValueError: if `share` is outside (0, 1) or there are fewer than two subjects.

    Example:
        >>> by_subject(np.array(["a", "a", "b", "b"]), 0.5, seed=0).sum()
        2
    """
    if not 0 < share < 1:
        raise ValueError(f"The share of a split must be above 0 and below 1. Received: {share!r}")
    names, subject, images = np.unique(np.asarray(subjects, np.str_), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(
            "A split by subject needs images of at least two subjects, so that no subject is on both sides. "
            f"Received: {len(names)} subjects, {len(subject)} images"
        )
    drawn = np.random.default_rng(seed).permutation(len(names))
    taken = np.cumsum(images[drawn])[:-1]
    enough = 1 + int(np.argmin(np.abs(taken - share * len(subject))))
    return np.isin(subject, drawn[:enough])


def carve(sides: pd.Series, subjects: pd.Series, shares: Mapping[str, float], seed: int) -> pd.Series:
    """Draws splits that a data set does not define from its training images, by subject.

    Args:
        sides: "train", or another side, for each image, str `[n]`.
        subjects: The subject of each image, str `[n]`.
        shares: The part of the images still to train on, in (0, 1), that each new side gets, in turn.
        seed: The seed of the random splits.

    Returns:
        The side of each image, str `[n]`.

    Raises:
        ValueError: as `by_subject` does.

    Example:
        >>> sides = carve(sides, subjects, {"test": 0.2, "validation": 0.1}, seed=0)
    """
    for side, share in shares.items():
        rest = sides.index[sides.eq("train")]
        sides = sides.mask(sides.index.isin(rest[by_subject(subjects[rest], share, seed)]), side)
    return sides


def joined(subjects: pd.Series, images: pd.Series) -> pd.Series:
    """Groups rows that must stay in one split: rows that share a subject or an image, directly or through other rows.

    Args:
        subjects: The subject of each row, str `[n]`.
        images: The image of each row, as `intake.admit` gives it, str `[n]`.

    Returns:
        The name of one of the subjects of each row's group, str `[n]`: its own where no image has two.

    Example:
        >>> joined(pd.Series(["a", "b", "c"]), pd.Series(["1", "1", "2"])).to_list()
        ['a', 'a', 'c']
    """
    who, what = (pd.factorize(column)[0] for column in (subjects, images))
    links = coo_array((np.ones(len(who), bool), (who, len(who) + what)), shape=(2 * len(who),) * 2)
    group = connected_components(links, directed=False)[1][who]
    return subjects.groupby(group).transform("min")


def check_exclusive(sides: NDArray[Any] | pd.Series, **columns: NDArray[Any] | pd.Series) -> None:
    """Refuses a table in which one subject, or one image, is on two sides.

    Args:
        sides: The fold or split of each row, `[n]`.
        **columns: Columns whose values must each stay on one side, such as `subject=` and `image=`, str `[n]` each.

    Raises:
        ValueError: naming the value that is on two sides, and the sides.
    """
    for name, column in columns.items():
        pairs = pd.DataFrame({"what": np.asarray(column), "side": np.asarray(sides)}).drop_duplicates()
        torn = pairs[pairs["what"].duplicated(keep=False)].groupby("what")["side"].agg(list)
        if len(torn):
            raise ValueError(
                f"No {name} may be on two sides of a split: the test would measure what was learnt. Received: "
                f"{len(torn)} on two or more, first {torn.index[0]!r} on {torn.iloc[0]}"
            )


def assemble(
    rows: pd.DataFrame, account: Account, sides: NDArray[Any] | pd.Series, class_names: tuple[str, ...], ordered: bool
) -> ImageData:
    """Puts the rows that `intake.admit` kept on their sides.

    Args:
        rows: `file`, `orientation`, `image`, `label`, `subject` of each row.
        account: What happened to every row.
        sides: "train", "validation" or "test" for each row, str `[n]`.
        class_names: The name of each label.
        ordered: Whether neighbouring labels are neighbouring classes.

    Returns:
        The data set.

    Raises:
        ValueError: if a subject or an image is on two sides, a side is empty, or there are fewer than two classes to
            learn.
    """
    check_exclusive(sides, subject=rows["subject"], image=rows["image"])
    sizes = {name: int(np.sum(sides == name)) for name in ("train", "validation", "test")}
    if not all(sizes.values()):
        raise ValueError(f"Every split needs images. Received: {sizes}\n{account}")
    check_classes(rows["label"][sides == "train"], class_names, account)
    return ImageData(
        **{name: examples(rows[sides == name]) for name in sizes},
        class_names=class_names,
        ordered=ordered,
        account=account,
    )


def check_classes(labels: NDArray[Any] | pd.Series, class_names: tuple[str, ...], account: Account) -> None:
    """Refuses to learn from fewer than two classes.

    Raises:
        ValueError: naming the one class there is.
    """
    present = [class_names[label] for label in np.unique(labels)]
    if len(present) < 2:
        raise ValueError(f"Training needs images of at least two classes. Received: only {present}\n{account}")


def examples(rows: pd.DataFrame) -> Examples:
    """The rows that `intake.admit` kept, or some of them, as one split."""
    return Examples(
        labels=rows["label"],
        paths=rows["file"].to_numpy(),
        subjects=rows["subject"].to_numpy(),
        orientations=rows["orientation"] if rows["orientation"].ne(1).any() else None,
    )
