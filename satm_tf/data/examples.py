"""The examples of a data set, not yet decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from satm_tf.data.account import Account


class ImageArray(Protocol):
    """Decoded images of one size, fetched by row: an array, or anything indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, height, width, 3)`."""

    def __getitem__(self, rows: Any, /) -> NDArray[np.uint8]:
        """The images of `rows` (int64 `[k]`), uint8 RGB `[k, height, width, 3]`."""


@dataclass(frozen=True)
class _Rows:
    """Some rows of an image array, without a copy of their pixels."""

    images: ImageArray
    rows: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.images.shape[1:])

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images[self.rows[rows]]


@dataclass(frozen=True, eq=False, init=False)
class Examples:
    """The labelled images of one split: files still to be decoded, or decoded pixels.

    Args:
        labels: int `[n]`, each in `[0, classes)`; kept as int32.
        paths: The image files, str `[n]`. Exactly one of `paths` and `images` is given.
        images: The decoded images, uint8 RGB `[n, height, width, 3]`: an array, or an `ImageArray`.
        subjects: Who or what each image shows, str `[n]`, or None if unknown.
        orientations: The EXIF orientation of each file, 1 to 8, int `[n]`; None when all are upright.
        ordered: Whether neighbouring labels are neighbouring classes; None if unknown. The splits of an `ImageData`
            take its value.

    Raises:
        ValueError: if the lengths differ, or if not exactly one of `paths` and `images` is given.

    Example:
        >>> len(Examples(labels=[0, 1], paths=["a.jpg", "b.jpg"]).limit(1))
        1
    """

    labels: NDArray[np.int32]
    paths: NDArray[np.str_] | None = None
    images: ImageArray | None = None
    subjects: NDArray[np.str_] | None = None
    orientations: NDArray[np.uint8] | None = None
    ordered: bool | None = None

    def __init__(
        self,
        labels: ArrayLike,
        paths: Sequence[str] | NDArray[Any] | None = None,
        images: ImageArray | None = None,
        subjects: Sequence[str] | NDArray[Any] | None = None,
        orientations: ArrayLike | None = None,
        ordered: bool | None = None,
    ) -> None:
        if (paths is None) == (images is None):
            raise ValueError(
                "Examples are either files or decoded images: give exactly one of `paths` and `images`. "
                f"Received: {'neither' if paths is None else 'both'}"
            )
        kinds = {"labels": np.int32, "paths": np.str_, "subjects": np.str_, "orientations": np.uint8}
        given = {"labels": labels, "paths": paths, "subjects": subjects, "orientations": orientations}
        columns: dict[str, Any] = {
            name: None if column is None else np.asarray(column, kinds[name]) for name, column in given.items()
        }
        columns["images"] = images
        lengths = {name: column.shape[0] for name, column in columns.items() if column is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The columns of Examples must have the same length. Received: {lengths}")
        if images is not None and (len(images.shape) != 4 or images.shape[-1] != 3):
            raise ValueError(f"`images` must be RGB, [n, height, width, 3]. Received: shape {tuple(images.shape)}")
        vars(self).update(columns, ordered=ordered)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: ArrayLike) -> Examples:
        """The examples at `rows` (int `[k]`, or bool `[n]`), in that order."""
        chosen = np.asarray(rows)
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)

        columns: dict[str, Any] = {
            name: None if column is None else column[index]
            for name, column in vars(self).items()
            if name not in ("images", "ordered")
        }
        return Examples(
            **columns, images=None if self.images is None else _Rows(self.images, index), ordered=self.ordered
        )

    def limit(self, n: int, seed: int = 0) -> Examples:
        """At most `n` of the examples, chosen by `seed`, in their original order."""
        if n >= len(self):
            return self
        return self.select(np.sort(np.random.default_rng(seed).permutation(len(self))[:n]))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set with its splits and the account of its rows.

    Args:
        train: The training examples.
        validation: The examples for early stopping, of other subjects than `train`.
        test: The examples to measure on, of other subjects than both.
        class_names: The name of each label.
        ordered: Whether neighbouring labels are neighbouring classes, as age groups are. If not, the one-off accuracy
            has no meaning.
        account: What happened to every row.
    """

    train: Examples
    validation: Examples
    test: Examples
    class_names: tuple[str, ...]
    ordered: bool
    account: Account

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            if split.ordered != self.ordered:
                object.__setattr__(self, name, replace(split, ordered=self.ordered))

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def limit(self, n: int, seed: int = 0) -> ImageData:
        """At most `n` examples of each split, chosen by `seed`; the account is unchanged."""
        return replace(self, **{name: getattr(self, name).limit(n, seed) for name in ("train", "validation", "test")})
