"""The loader on Adience's real fold files, with a small drawn image for each photograph.

    python benchmarks/adience.py FOLDER_OF_THE_FOLD_FILES

It prints the account and the sizes of the test folds for both ways of reading the labels, and fails if they differ from
those of the files published in GilLevi/AgeGenderDeepLearning. The sizes under exact labels are those of its
`age_test.txt` and `gender_test.txt`.
"""

from __future__ import annotations

import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path

import tensorflow as tf

from satm_tf.data import adience

ROWS, USED = 19_487, 18_622
LEFT_OUT = {"age 'None'": 753, "named before": 112}
PUBLISHED = {"age": [4316, 3101, 3339, 2975, 3693], "gender": [4007, 3624, 3191, 3318, 3463]}


def write_placeholders(folds: Path, root: Path) -> None:
    """The fold files, and an 8 x 8 JPEG for each image that they name, all with different bytes."""
    jpeg = tf.io.encode_jpeg(tf.zeros([8, 8, 3], tf.uint8)).numpy()
    images = set()
    for fold in adience.FOLDS:
        path = Path(shutil.copy(folds / f"fold_{fold}_data.txt", root))
        for line in path.read_text("utf-8").splitlines()[1:]:
            owner, photograph, face = line.split("\t")[:3]
            images.add(f"aligned/{owner}/landmark_aligned_face.{face}.{photograph}")
    for number, image in enumerate(sorted(images)):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(jpeg[:2] + b"\xff\xfe\0\x06" + struct.pack(">I", number) + jpeg[2:])


def main(folds: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write_placeholders(folds, Path(scratch))
        started = time.perf_counter()
        data = adience.load(scratch)
        print(f"{data.account}\nread in {time.perf_counter() - started:.1f} s")
        parts = (data.train, data.validation, data.test)
        subjects = {subject for part in parts for subject in part.subjects}
        print(f"{len(subjects):,} subjects of {len({name.split('/')[0] for name in subjects})} owners")
        assert (data.account.rows, data.account.used, data.account.left_out) == (ROWS, USED, LEFT_OUT)
        assert data.account.mapped["(25, 23)", "25-32"] == 72
        print("test folds, mapped:", [len(adience.load(scratch, fold=fold).test) for fold in adience.FOLDS])
        for target, published in PUBLISHED.items():
            sizes = [
                len(adience.load(scratch, fold=fold, target=target, exact_labels=True).test) for fold in adience.FOLDS
            ]
            print(f"test folds, exact labels, {target}: {sizes}")
            assert sizes == published


if __name__ == "__main__":
    main(Path(sys.argv[1]))
