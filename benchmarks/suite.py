"""The adversarial suite of synthetic faces: two surrogates trained on drawn faces, and their examples.

    python benchmarks/suite.py --output synthetic_faces_suite

One surrogate is undefended, the other trained adversarially; they form the rungs "unseen" and "defended" for models
that you score on the suite with `satm-tf evaluate --suite`. Everything depends on one seed. docs/how-to/suites.md has
the digest that it prints, and lists what it depends on.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import keras
import tensorflow as tf

import satm_tf
from satm_tf import attack, data

SIZE, EPSILON = 48, 8 / 255
FACES = {"num_subjects": 300, "images_per_subject": 5, "seed": 0}
SURROGATES = {"unseen/compact_resnet": "undefended", "defended/compact_vgg": "adversarial"}
ATTACKS = {"fgsm": {}, "mi_fgsm": {"steps": 10}}


def train(name: str, scheme: str, folder: Path, epochs: int) -> str:
    """Trains a surrogate; returns its file."""
    images = data.formats.load("synthetic_faces", folder / "faces", **FACES)
    keras.utils.set_random_seed(0)
    backbone = name.rpartition("/")[2]
    network = satm_tf.ImageClassifier.from_backbone(
        backbone, num_classes=images.num_classes, image_shape=(SIZE, SIZE, 3)
    )
    batches = data.batches(images.train, image_size=SIZE, batch_size=32, shuffle=True, seed=0)
    trainer = satm_tf.CoTraining({backbone: network}, scheme, epsilon=EPSILON, seed=0)
    trainer.compile(keras.optimizers.Adam(1e-3))
    trainer.fit(batches, epochs=epochs, verbose=0)
    path = folder / f"{backbone}.keras"
    network.save(path)
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int, default=200, help="images in the suite")
    options = parser.parse_args()
    # Sums over several threads depend on their number.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        surrogates = {name: train(name, scheme, Path(folder), options.epochs) for name, scheme in SURROGATES.items()}
        attack.attack(
            model=surrogates,
            images=str(Path(folder) / "faces"),
            output=options.output,
            attack=ATTACKS,
            epsilon=[EPSILON],
            format="synthetic_faces",
            data=FACES,
            limit=options.limit,
        )


if __name__ == "__main__":
    main()
