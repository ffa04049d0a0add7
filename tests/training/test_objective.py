"""What weighs what in a network's loss; the whole of it is in `test_steps.py`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining
from satm_tf.training import ClassificationLoss
from tests.training.by_hand import ATTACK, craft


def test_sample_weights_scale_the_clean_and_the_adversarial_loss(make_network, images, labels):
    weights = np.linspace(0.0, 2.0, 12).astype("float32")
    network = make_network("a")
    adversarial = craft(network, images)
    trainer = CoTraining({"a": network}, learns_from="itself", attack=ATTACK)
    trainer.compile(keras.optimizers.SGD(0.0))
    logs = trainer.train_on_batch(images, labels, sample_weight=weights, return_dict=True)
    for part, x in (("clean", images), ("adversarial", adversarial)):
        losses = keras.losses.sparse_categorical_crossentropy(labels, network(x), from_logits=True)
        assert logs[f"a_{part}_loss"] == pytest.approx(np.mean(weights * losses), rel=1e-5)


def test_a_loss_of_its_own_is_that_of_clean_and_of_adversarial_images(make_network, images, labels):
    loss = ClassificationLoss(label_smoothing=0.2, class_weights=[1.0, 0.5, 2.0, 1.5], order_temperature=0.7)
    network = make_network("a")
    adversarial = craft(network, images)
    trainer = CoTraining({"a": network}, learns_from="itself", attack=ATTACK, loss=loss)
    trainer.compile(keras.optimizers.SGD(0.0))
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    for part, x in (("clean", images), ("adversarial", adversarial)):
        assert logs[f"a_{part}_loss"] == pytest.approx(float(tf.reduce_mean(loss(labels, network(x)))), rel=1e-5)
