"""Synthetic faces, written in Adience's own format: for demonstrations and tests without access to the real ones.

The faces are described by `traits.py` and drawn by `renderer.py`, next to this file. Age shows in many cues at once,
each of them noisy, so that a network often confuses neighbouring groups and hardly ever distant ones: one-off accuracy
and subject-exclusive folds have the same meaning as on Adience. Networks trained on these faces say nothing about real
people.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tqdm import tqdm

from satm_tf import storage
from satm_tf.data.adience import AGE_GROUPS
from satm_tf.data.synthetic.renderer import VERSION, draw_faces
from satm_tf.data.synthetic.traits import Traits, age_of_stage, face_traits

HEADER = (
    *("user_id", "original_image", "face_id", "age", "gender", "x", "y", "dx", "dy"),
    *("tilt_ang", "fiducial_yaw_angle", "fiducial_score"),
)
PARAMETERS_FILE = "synthetic_faces.json"

_FOLDS = 5
_BLOCK = 64  # Faces drawn between two steps of the progress bar.


def render(
    age: npt.ArrayLike,
    gender: Sequence[str],
    *,
    identity: npt.ArrayLike | None = None,
    image_size: int = 96,
    seed: int = 0,
) -> npt.NDArray[np.uint8]:
    """Draws faces of given ages and genders.

    Args:
        age: Ages in years, `[n]`, 0 or more.
        gender: "m" or "f" for each face, `[n]`.
        identity: Subject number of each face, integers of 0 or more, `[n]`. Faces of one number are one person,
            photographed again: pose, light, expression and background differ. A number is the same person in every call
            with the same seed, at any age. Without it, every face is a different person.
        image_size: Side of the square images in pixels, 32 to 816.
        seed: Seed of everything drawn, 0 or more.

    Returns:
        RGB images, uint8, `[n, image_size, image_size, 3]`.

    Raises:
        ValueError: If the lengths differ or a value is out of its range.

    Example:
        >>> growing_up = render([1, 5, 10, 17, 28, 40, 50, 72], "f" * 8, identity=[3] * 8)
        >>> growing_up.shape
        (8, 96, 96, 3)
    """
    _checked("image_size", image_size, 32, 816)
    _checked("seed", seed, 0)
    return draw_faces(face_traits(age, gender, identity=identity, seed=seed), image_size=image_size, seed=seed)


def write_adience(
    root: str | os.PathLike[str],
    *,
    num_subjects: int = 480,
    images_per_subject: int = 5,
    image_size: int = 96,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Writes a data set of synthetic faces as Adience is published, or leaves an existing one unchanged.

    Under `root` it writes `fold_0_data.txt` to `fold_4_data.txt`, the JPEGs as
    `aligned/<user_id>/landmark_aligned_face.<face_id>.<original_image>`, and its own parameters as
    `synthetic_faces.json`. The folds share no subject and are as even in age groups and genders as the number of
    subjects allows: exactly so for multiples of 80. `root` appears only when it is complete.

    Args:
        root: The folder to write. Its parents are created.
        num_subjects: Subjects, 40 or more: one of each of the eight groups in each of the five folds.
        images_per_subject: Images of each subject, 1 or more.
        image_size: Side of the square images in pixels, 32 to 816. (The published ones have 816.)
        seed: Seed of everything drawn, 0 or more. The same seed gives the same bytes.
        progress: Whether to show a progress bar, on terminals, if it takes more than a few seconds.

    Returns:
        `root`, as an absolute path.

    Raises:
        ValueError: If an argument is out of its range.
        FileExistsError: If `root` holds something else, or an incomplete set or one with other parameters.

    Example:
        >>> root = write_adience("data/synthetic_faces", num_subjects=80)
        >>> sorted(path.name for path in root.iterdir())[:2]
        ['aligned', 'fold_0_data.txt']
    """
    root = Path(root).expanduser().absolute()
    parameters = {
        "version": VERSION,
        "num_subjects": _checked("num_subjects", num_subjects, _FOLDS * len(AGE_GROUPS)),
        "images_per_subject": _checked("images_per_subject", images_per_subject, 1),
        "image_size": _checked("image_size", image_size, 32, 816),
        "seed": _checked("seed", seed, 0),
    }
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        _check_same(root, parameters)
        return root

    with storage.atomic_folder(root, durable=False) as partial:
        _write(partial, num_subjects, images_per_subject, image_size, seed, progress)
        storage.write_json(partial / PARAMETERS_FILE, parameters)
    return root


def _checked(name: str, value: int, low: int, high: int | None = None) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        bounds = f"of {low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"`{name}` must be an integer {bounds}. Received: {name}={value!r}")
    return int(value)


def _check_same(root: Path, parameters: dict[str, int]) -> None:
    advice = "Choose another folder, or delete this one to write it again."
    record = root / PARAMETERS_FILE
    if not record.is_file():
        raise FileExistsError(
            f"`root` holds files other than synthetic faces. {advice} If these are your images, give their format "
            f"instead of synthetic_faces (--data.format). Received: root={str(root)!r}"
        )
    found = storage.read_json(record)
    if found != parameters:
        raise FileExistsError(
            f"`root` holds synthetic faces with other parameters, {found}. {advice} Received: root={str(root)!r}, "
            f"{parameters}"
        )
    images = sum(1 for _ in root.glob("aligned/*/*.jpg"))
    expected = parameters["num_subjects"] * parameters["images_per_subject"]
    if images != expected or not all((root / f"fold_{fold}_data.txt").is_file() for fold in range(_FOLDS)):
        raise FileExistsError(
            f"`root` holds synthetic faces, but some of their files are missing. {advice} Received: "
            f"root={str(root)!r} with {images} of {expected} images"
        )


def _write(root: Path, num_subjects: int, images_per_subject: int, image_size: int, seed: int, progress: bool) -> None:
    rng = np.random.default_rng([seed, 2])
    # Group runs fastest, then fold, then gender: a set of any size is as even as it can be.
    subject = np.arange(num_subjects)
    group, fold = subject % len(AGE_GROUPS), subject // len(AGE_GROUPS) % _FOLDS
    man = (subject // (_FOLDS * len(AGE_GROUPS)) + group + fold) % 2 == 0
    # A little beyond the group's years at either end, because stated ages are imprecise.
    age = age_of_stage(group + rng.uniform(-0.43, 0.43, num_subjects))
    users = [f"{number}@N{shard:02d}" for number, shard in _unique_numbers(rng, num_subjects)]

    person = np.repeat(subject, images_per_subject)
    names = [f"{number}_{secret:010x}_o.jpg" for number, secret in _unique_numbers(rng, len(person), 2**40)]
    traits = face_traits(age[person], np.where(man, "m", "f")[person].tolist(), identity=person, seed=seed)
    rows: list[list[str]] = [["\t".join(HEADER)] for _ in range(_FOLDS)]
    for user in users:
        (root / "aligned" / user).mkdir(parents=True)
    images = _drawn(traits, image_size, seed)
    bar = tqdm(images, "synthetic faces", len(person), unit="image", delay=2, disable=None if progress else True)
    for index, image in enumerate(bar):
        who = person[index]
        face = f"{who + 1}.{names[index]}"
        quality = int(np.clip(traits["jpeg_quality"][index], 40, 98))
        encoded = tf.raw_ops.EncodeJpegVariableQuality(images=image, quality=quality).numpy()
        (root / "aligned" / users[who] / f"landmark_aligned_face.{face}").write_bytes(encoded)
        low, high = AGE_GROUPS[group[who]]
        columns = (users[who], names[index], who + 1, f"({low}, {high})", "m" if man[who] else "f")
        rows[fold[who]].append("\t".join(map(str, (*columns, *_place(traits, index, rng)))))
    for number, lines in enumerate(rows):
        (root / f"fold_{number}_data.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _unique_numbers(rng: np.random.Generator, count: int, high: int = 10) -> Iterator[tuple[int, int]]:
    """Pairs of a distinct, ascending number of about ten digits and a number below `high`."""
    ascending = 8_000_000_000 + np.cumsum(rng.integers(1, 4_000_000_000 // count, count))
    return zip(ascending.tolist(), rng.integers(0, high, count).tolist(), strict=True)


def _drawn(traits: Traits, image_size: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    for start in range(0, len(traits["scale"]), _BLOCK):
        block = {name: values[start : start + _BLOCK] for name, values in traits.items()}
        yield from draw_faces(block, image_size=image_size, seed=[seed, start])


def _place(traits: Traits, index: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Where the face might have been in a whole photograph, and the angles that Adience gives in steps of 5 and 15."""
    x, y, side = rng.integers(0, 900), rng.integers(0, 700), rng.integers(120, 900)
    tilt, yaw = (np.rad2deg(traits[name][index]) / step for name, step in (("tilt", 5), ("yaw", 15)))
    return int(x), int(y), int(side), int(side), round(tilt) * 5, round(yaw) * 15, int(rng.integers(1, 150))
