from __future__ import annotations

import numpy as np
import pytest

from satm_tf.attacks import losses

LOGITS = np.array([[1.0, 4.0, 2.0, -1.0], [3.0, 0.0, 1.0, 2.5]], "float32")
CLASSES = np.array([1, 2], "int32")


def test_each_loss_by_hand():
    np.testing.assert_allclose(losses.margin(CLASSES, LOGITS), [2 - 4, 3 - 1], rtol=1e-6)
    np.testing.assert_allclose(
        losses.difference_of_logits_ratio(CLASSES, LOGITS), [-2 / (4 - 1), 2 / (3 - 1)], rtol=1e-6
    )
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    np.testing.assert_allclose(
        losses.cross_entropy(CLASSES, LOGITS), -np.log(probabilities[[0, 1], CLASSES]), rtol=1e-5
    )


@pytest.mark.parametrize("loss", losses.LOSSES.values())
def test_leading_axes_are_other_answers_about_the_same_images(loss):
    stacked = loss(CLASSES, np.stack([LOGITS, LOGITS[:, ::-1]]))
    np.testing.assert_allclose(stacked[0], loss(CLASSES, LOGITS), rtol=1e-6)
    np.testing.assert_allclose(stacked[1], loss(CLASSES, LOGITS[:, ::-1]), rtol=1e-6)


def test_the_ratio_does_not_see_the_scale_of_the_logits_and_takes_two_classes():
    ratio = losses.difference_of_logits_ratio
    np.testing.assert_allclose(ratio(CLASSES, 1000 * LOGITS), ratio(CLASSES, LOGITS), rtol=1e-5)
    np.testing.assert_allclose(ratio(np.array([0, 0]), np.array([[2.0, 1.0], [1.0, 1.0]], "float32")), [-1, 0])
