"""Draws adversarial_examples.png from the run folder of README's first command, its one argument."""

import sys
from pathlib import Path

import numpy as np

from satm_tf.attacks.gallery import write_gallery
from satm_tf.experiment import RunFolder, Stage, config
from satm_tf.experiment.images import load_data, make_batches

run = RunFolder(sys.argv[1])
described = config.from_arguments(["--config", str(run.config)])
faces = load_data(described.data, run, described.seed)
images, labels = next(make_batches(faces.test, described).as_numpy_iterator())
attack = config.make_attack(described.attack)
adversarial = attack(run.load(Stage("fine_tune", "compact_inception"), "compact_inception"), images, labels).numpy()
undefended, satm = (run.load(Stage("co_train", scheme), "compact_resnet") for scheme in ("undefended", "satm"))

clean, lost, kept = (
    np.argmax(network(shown, training=False), -1)
    for network, shown in ((undefended, images), (undefended, adversarial), (satm, adversarial))
)
rows = np.flatnonzero((clean == labels) & (lost != labels))[:3]
write_gallery(
    Path(__file__).with_suffix(".png"),
    images[rows],
    adversarial[rows],
    [f"{faces.class_names[clean[row]]} years" for row in rows],
    [f"{faces.class_names[lost[row]]} years\nafter SATM {faces.class_names[kept[row]]}" for row in rows],
    title="compact_resnet and images made on compact_inception",
)
