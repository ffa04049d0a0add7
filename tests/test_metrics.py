import math

import keras
import numpy as np
import pytest

from satm_tf import metrics

# Rows are true classes. Diagonal 5 + 2 + 0 + 4 = 11; neighbours above 1 + 2 + 3 = 6, below 1 + 1 + 0 = 2; all 24.
MATRIX = np.array([[5, 1, 0, 2], [1, 2, 2, 0], [0, 1, 0, 3], [3, 0, 0, 4]])


def _examples():
    cells = [(c, k) for c in range(4) for k in range(4) for _ in range(MATRIX[c, k])]
    order = np.random.default_rng(0).permutation(len(cells))
    labels, predicted = np.array(cells)[order].T
    return labels, predicted, np.eye(4, dtype=np.float32)[predicted]


def test_accuracies_of_a_hand_made_matrix():
    assert metrics.accuracy(MATRIX) == pytest.approx(11 / 24)
    assert metrics.one_off_accuracy(MATRIX) == pytest.approx(19 / 24)


@pytest.mark.parametrize(
    ("label", "predicted", "hit"), [(0, 0, 1), (0, 1, 1), (0, 2, 0), (0, 3, 0), (3, 2, 1), (3, 0, 0)]
)
def test_one_off_at_the_edges_does_not_wrap_around(label, predicted, hit):
    matrix = metrics.confusion_matrix([label], [predicted], 4)
    assert metrics.one_off_accuracy(matrix) == hit
    metric = metrics.OneOffAccuracy()
    metric.update_state([label], np.eye(4)[[predicted]])
    assert float(metric.result()) == hit


def test_confusion_matrix_has_true_classes_as_rows():
    labels, predicted, _ = _examples()
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, predicted, 4), MATRIX)


def test_the_keras_metric_over_batches_equals_the_function():
    labels, _, logits = _examples()
    one_off = metrics.OneOffAccuracy()
    for start in range(0, len(labels), 7):
        one_off.update_state(labels[start : start + 7], logits[start : start + 7])
    # A mean of 24 float32 ones and zeros: exact up to one rounding of the quotient.
    assert float(one_off.result()) == pytest.approx(19 / 24, rel=1e-6)


def test_config_round_trip_and_reset():
    metric = metrics.OneOffAccuracy()
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert copy.get_config() == metric.get_config()
    copy.update_state([1], np.eye(4)[[1]])
    copy.reset_state()
    assert np.sum(copy.result()) == 0


def test_an_empty_matrix_has_no_accuracy():
    assert math.isnan(metrics.accuracy(np.zeros((4, 4))))


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 4], [0, 0], r"labels must lie in \[0, 4\)"),
        ([0, 0], [0, -1], r"predictions must lie in \[0, 4\)"),
        ([0], [0, 1], "the same length"),
    ],
)
def test_bad_input(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        metrics.confusion_matrix(labels, predictions, 4)


def test_no_better_than_chance_is_within_a_tenth_of_guessing():
    assert metrics.at_chance(0.2, 4)
    assert metrics.at_chance(0.27, 4)
    assert not metrics.at_chance(0.28, 4)
    assert not metrics.at_chance(0.27, 10)
