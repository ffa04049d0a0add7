"""Small images and data sets, written as their owners would."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from satm_tf.data import synthetic

HEADER = "user_id\toriginal_image\tface_id\tage\tgender\tx\ty\tdx\tdy\ttilt_ang\tfiducial_yaw_angle\tfiducial_score\n"


def numbered(jpeg: bytes, number: int) -> bytes:
    """The same pixels in other bytes, for files of equal bytes are one image: a JPEG with a comment."""
    return jpeg[:2] + b"\xff\xfe\0\x06" + struct.pack(">I", number) + jpeg[2:]


@pytest.fixture(scope="session")
def picture():
    """A smooth picture, so that JPEG changes it little: uint8 `[height, width, 3]`, other for each seed."""

    def make(seed: int = 0, height: int = 32, width: int = 32) -> np.ndarray:
        coarse = np.random.default_rng(seed).integers(30, 226, (4, 4, 3), np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))

    return make


@pytest.fixture
def noise():
    """An augmentation that is traced in no time, and in which every pixel follows from the seed."""

    def add(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(images + tf.random.stateless_uniform(tf.shape(images), seed, -0.2, 0.2), 0, 1)

    return add


@pytest.fixture(scope="session")
def synthetic_faces(tmp_path_factory):
    """80 subjects of two images each, 32 x 32 pixels; only to be read."""
    root = tmp_path_factory.mktemp("synthetic") / "faces"
    return synthetic.write_adience(root, num_subjects=80, images_per_subject=2, image_size=32, progress=False)


@pytest.fixture(scope="session")
def encode():
    """A function that gives an array's or a Pillow image's bytes in a format."""

    def make(image: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
        buffer = io.BytesIO()
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        picture.save(buffer, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}), **options)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def write_image(picture, encode):
    """A function that writes a small JPEG, its folders too; at each path another file, whatever the picture."""

    def write(path: Path, seed: int = 0, height: int = 32, width: int = 32) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbered(encode(picture(seed, height, width)), zlib.crc32(str(path).encode())))
        return path

    return write


@pytest.fixture(scope="session")
def write_adience(tmp_path_factory, write_image):
    """A function that writes an Adience tree from rows (fold, subject, image, face, age, gender), and their images."""

    def write(rows) -> Path:
        root = tmp_path_factory.mktemp("adience") / "adience"
        root.mkdir()
        tables = [HEADER] * 5
        for seed, (fold, subject, image, face, age, gender) in enumerate(rows):
            tables[fold] += f"{subject}\t{image}\t{face}\t{age}\t{gender}" + "\t0" * 7 + "\n"
            write_image(root / "aligned" / subject / f"landmark_aligned_face.{face}.{image}", seed)
        for fold, table in enumerate(tables):
            (root / f"fold_{fold}_data.txt").write_text(table)
        return root

    return write


@pytest.fixture(scope="session")
def shared_adience(write_adience):
    """Five folds of three owners with two images each of one subject, four of the groups; only to be read."""
    ages = ("(0, 2)", "(15, 20)", "(25, 32)", "(60, 100)")
    return write_adience(
        (fold, f"{fold}{subject}@N", f"{image}.jpg", 7, ages[(fold + subject + image) % 4], "mf"[subject % 2])
        for fold in range(5)
        for subject in range(3)
        for image in range(2)
    )


@pytest.fixture
def plain_adience(shared_adience, tmp_path):
    """A copy of `shared_adience`, to be changed."""
    return Path(shutil.copytree(shared_adience, tmp_path / "adience"))
