"""The figures: means over runs for the curves, and images that are fooled, each once, in the gallery."""

import dataclasses

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from satm_tf.attacks import FGSM
from satm_tf.experiment import RunFolder
from satm_tf.experiment.config import from_arguments
from satm_tf.paper.drawing import _fooled, draw_curves
from satm_tf.paper.tables import FIGURES


def test_curves_are_means_over_runs(tmp_path):
    config = from_arguments(["--config", "small"])
    folders = [RunFolder(tmp_path / name) for name in "ab"]
    for rate, folder in zip((0.2, 0.6), folders, strict=True):
        columns = {f"vgg16_face{middle}_accuracy": [rate, rate + 0.1] for middle in ("", "_adversarial")}
        rows = [
            pd.DataFrame({"stage": f"co_train/{scheme}_true", "epoch": [0, 1], **columns})
            for scheme in ("satm", "satm_without_adaptation")
        ]
        folder.path.mkdir()
        pd.concat(rows).to_csv(folder.metrics, index=False)
    path = tmp_path / "figures" / "figure_3_true.png"
    draw_curves(dataclasses.replace(FIGURES[3]), config, folders, "true", path)
    drawn = pd.read_csv(path.with_suffix(".csv"), index_col="epoch")
    assert drawn.index.tolist() == [1, 2]
    assert drawn["satm, clean"].tolist() == pytest.approx([0.4, 0.5])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_an_image_is_shown_once_and_only_if_it_is_fooled():
    """The network takes what is brighter than a half for class 1; epsilon crosses that for two images."""
    network = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    network.layers[-1].set_weights([np.array([[-4.0, 4.0]] * 3), np.array([6.0, -6.0])])
    values = np.array([0.1, 0.45, 0.9, 0.48], np.float32)
    images = tf.constant(np.tile(values[:, None, None, None], (1, 2, 2, 3)))
    batches = tf.data.Dataset.from_tensor_slices((images, tf.constant([0, 0, 1, 0]))).batch(2)
    used: set[int] = set()
    found = [_fooled(network, FGSM(epsilon=0.1), batches, 0.1, 0, used)]
    used.add(found[0][0])
    found.append(_fooled(network, FGSM(epsilon=0.1), batches, 0.1, 0, used))
    assert [each[0] for each in found] == [1, 3]
    assert all((each[3], each[4]) == (0, 1) for each in found)
    used.add(3)
    assert _fooled(network, FGSM(epsilon=0.1), batches, 0.1, 0, used) is None
