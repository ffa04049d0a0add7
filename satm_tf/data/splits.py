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
    """Draws whole subjects, `[n]`, until they make up `share`, in (0, 1), of the images, as nearly as possible.

    Returns:
        bool `[n]`: whether the image was drawn. At least one subject is, and at least one is not.
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
    """Draws new sides, each with its share of the images that are still on the side "train", in turn, by subject."""
    for side, share in shares.items():
        rest = sides.index[sides.eq("train")]
        sides = sides.mask(sides.index.isin(rest[by_subject(subjects[rest], share, seed)]), side)
    return sides


def joined(subjects: pd.Series, images: pd.Series) -> pd.Series:
    """Groups rows that must stay in one split: rows that share a subject or an image, directly or through other rows.

    Returns:
        The first of the subjects of each row's group, str `[n]`: its own where no image has two.
    """
    who, what = (pd.factorize(column)[0] for column in (subjects, images))
    links = coo_array((np.ones(len(who), bool), (who, len(who) + what)), shape=(2 * len(who),) * 2)
    group = connected_components(links, directed=False)[1][who]
    return subjects.groupby(group).transform("min")


def check_exclusive(sides: NDArray[Any] | pd.Series, **columns: NDArray[Any] | pd.Series) -> None:
    """Refuses a table in which a value of one of the columns, such as a subject, is on two sides."""
    for name, column in columns.items():
        pairs = pd.DataFrame({"what": np.asarray(column), "side": np.asarray(sides)}).drop_duplicates()
        torn = pairs[pairs["what"].duplicated(keep=False)].groupby("what")["side"].agg(list)
        if len(torn):
            raise ValueError(
                f"No {name} may be on two sides of a split: the test would measure what was learnt. Received: "
                f"{len(torn)} on two or more, first {torn.index[0]!r} on {torn.iloc[0]}"
            )


def assemble(
    rows: pd.DataFrame,
    account: Account,
    class_names: tuple[str, ...],
    ordered: bool,
    shares: Mapping[str, float],
    seed: int,
    owners: pd.Series | None = None,
) -> ImageData:
    """Makes a data set of the rows that `intake.admit` kept.

    Args:
        rows: `file`, `orientation`, `image`, `label`, `side` ("train", "validation" or "test") and, if it is known,
            `subject` of each row.
        account: As `ImageData` takes it, and so are `class_names` and `ordered`.
        shares: The sides to draw from the training images, as `carve` takes them.
        seed: The seed of the draw.
        owners: Who stays on one side in the draw, if not the subject.
    """
    if "subject" not in rows:
        rows = rows.assign(subject=joined(rows["file"], rows["image"]))
    owners = joined(rows["subject"] if owners is None else owners, rows["image"])
    sides = carve(rows["side"], owners, shares, seed)
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
    """Refuses to learn from fewer than two classes."""
    present = [class_names[label] for label in np.unique(labels)]
    if len(present) < 2:
        raise ValueError(f"Training needs images of at least two classes. Received: only {present}\n{account}")


def to_measure(rows: pd.DataFrame, account: Account, class_names: tuple[str, ...]) -> ImageData:
    """A data set of all rows as its test images, with none to learn from."""
    none = Examples(labels=[], paths=[])
    return ImageData(none, none, examples(rows), class_names, ordered=False, account=account)


def examples(rows: pd.DataFrame) -> Examples:
    """The rows that `intake.admit` kept, or some of them, as one split."""
    return Examples(
        labels=rows["label"],
        paths=rows["file"].to_numpy(),
        subjects=rows["subject"].to_numpy(),
        orientations=rows["orientation"] if rows["orientation"].ne(1).any() else None,
    )
