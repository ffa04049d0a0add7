"""A run whose networks reject: trained with a null class, exported with it as their detector."""

import dataclasses

import numpy as np
import pytest

from satm_tf import experiment, export, serving
from satm_tf.data import batches
from satm_tf.experiment import Stage
from satm_tf.experiment import config as configuration
from satm_tf.experiment.images import load_data


@pytest.mark.usefixtures("without_pictures")
def test_a_null_class_is_served_as_a_detector(config, tmp_path):
    scheme = dataclasses.replace(config.schemes["ensemble"], null_share=1.0)
    config = dataclasses.replace(
        config,
        holdouts={},
        schemes={"rejecting": scheme},
        checks=configuration.ChecksConfig(schemes=[]),
        export=configuration.ExportConfig("rejecting", str(tmp_path / "exported"), ["a"], "null_class"),
    )
    experiment.run(config)
    network = config.folder.load(Stage("co_train", "rejecting"), "a")
    assert network.null_class
    assert network.num_classes == 3
    detector = config.folder.load_detector(Stage("co_train", "rejecting"), "a")
    test = load_data(config.data, config.folder, config.seed).test
    ((images, _),) = batches(test, image_size=16, batch_size=60).as_numpy_iterator()
    export.export(str(config.folder.path), folder=str(tmp_path / "again"), scheme="rejecting", networks=["a"])
    for folder in ("exported", "again"):
        answers = serving.Client.from_folder(tmp_path / folder / "a").predict(images)
        score = detector.score(network, images).numpy()
        np.testing.assert_allclose(answers.adversarial_score, score, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(answers.suspicious, score > detector.threshold.numpy())
        np.testing.assert_array_equal(answers.class_id, np.argmax(network(images), -1))


def test_a_null_class_that_nobody_trains_is_refused_before_training(config):
    config = dataclasses.replace(config, export=dataclasses.replace(config.export, detector="null_class"))
    with pytest.raises(ValueError, match="needs a scheme with null_share"):
        experiment.run(config)
    assert not (config.folder.path / "networks").exists()
