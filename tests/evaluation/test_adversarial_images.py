"""What `write_adversarial` writes; `tests/test_attack.py` checks the PNGs of the command against the model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from satm_tf import attacks
from satm_tf.evaluation.adversarial_images import write_adversarial

FGSM = attacks.FGSM(epsilon=0.1)


def test_names_paths_and_success_by_the_label(make_network, images, labels, tmp_path):
    paths = [f"{index}.jpg" for index in range(12)]
    table = write_adversarial(
        tmp_path / "out",
        {"a": make_network()},
        images,
        labels,
        attacks={"fgsm": FGSM},
        class_names="abcd",
        paths=paths,
        batch_size=5,
    )
    assert table.source.tolist() == paths
    assert table.label.tolist() == ["abcd"[label] for label in labels]
    assert table.epsilon.unique().tolist() == [0.1]
    np.testing.assert_array_equal(table.success, table.after != table.label)
    read = pd.read_csv(tmp_path / "out" / "results.csv")
    pd.testing.assert_frame_equal(read, table, check_dtype=False, check_exact=False, rtol=1e-6)
    assert all((tmp_path / "out" / file).exists() for file in table.file)


def test_toward_a_target_the_label_stays_the_true_one(make_network, images, labels, tmp_path):
    attack = attacks.FGSM(epsilon=0.1, label_source="target")
    table = write_adversarial(
        tmp_path / "out", {"a": make_network()}, images, labels, attacks={"fgsm": attack}, target=2
    )
    assert table.label.tolist() == [str(label) for label in labels]
    np.testing.assert_array_equal(table.success, table.after == "2")


def test_without_labels_the_predicted_class_is_left(make_network, images, tmp_path):
    attack = attacks.FGSM(epsilon=0.1, label_source="predicted")
    table = write_adversarial(
        tmp_path / "out", {"a": make_network()}, images, attacks={"fgsm": attack}, epsilons={"fgsm": [0.05, 0.1]}
    )
    assert set(table.label) == {""}
    assert not (tmp_path / "out" / "suite.json").exists(), "a suite needs labels"
    assert table.groupby("epsilon").size().to_dict() == {0.05: 12, 0.1: 12}
    np.testing.assert_array_equal(table.success, table.after != table.before)


def test_grey_images(tmp_path):
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype("float32")
    weights = tf.random.stateless_normal([64, 3], [0, 1])
    table = write_adversarial(
        tmp_path / "out",
        {"grey": lambda images, training: tf.reshape(images, [-1, 64]) @ weights},
        images,
        np.arange(3),
        attacks={"fgsm": FGSM},
    )
    assert tf.io.decode_png(tf.io.read_file(str(tmp_path / "out" / table.file[0]))).shape == [8, 8, 1]


def test_a_folder_is_whole_or_not_there_and_never_overwritten(make_network, images, labels, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="taken exists"):
        write_adversarial(tmp_path / "taken", {"a": make_network()}, images, labels, attacks={"fgsm": FGSM})

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr("satm_tf.evaluation.adversarial_images.write_gallery", fail)
    with pytest.raises(OSError, match="disk full"):
        write_adversarial(tmp_path / "out", {"a": make_network()}, images, labels, attacks={"fgsm": FGSM})
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
