from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks
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


def test_the_margin_over_a_rejection_is_positive_only_where_wrong_and_not_rejected():
    # The classes 0 to 2, and the rejection.
    logits = np.float32([[1, 4, 2, -1], [3, 0, 1, 2.5], [3, 0, 1, 3.5], [0, 2, 1, 3]])
    right, wrong, rejected, own_but_rejected = losses.evading_margin(np.array([1, 2, 2, 1]), logits).numpy()
    np.testing.assert_allclose([right, wrong, rejected, own_but_rejected], [2 - 4, 3 - 2.5, 3 - 3.5, 1 - 3])
    # Away from the rejection itself, where that is the prediction at the clean image.
    np.testing.assert_allclose(losses.evading_margin(np.array([3]), logits[2:3]), [3 - 3.5])
    with pytest.raises(ValueError, match="two classes or more and a last logit"):
        losses.evading_margin(np.array([0]), tf.zeros([1, 2]))


def test_the_margin_over_a_rejection_takes_no_target_and_counts_no_rejection_as_success():
    with pytest.raises(ValueError, match="use loss='margin'"):
        attacks.PGD(epsilon=0.1, loss="evading_margin", label_source="target")
    logits, classes = tf.constant([[3.0, 0, 1, 3.5], [3.0, 0, 1, 2.5]]), tf.constant([2, 2])
    assert attacks.PGD(epsilon=0.1, loss="evading_margin").succeeds(logits, classes).numpy().tolist() == [False, True]
    assert attacks.PGD(epsilon=0.1, loss="margin").succeeds(logits, classes).numpy().tolist() == [True, True]
