import keras
import numpy as np
import pytest

from satm_tf.training import ClassificationLoss, balanced_class_weights

CLASSES = 5


@pytest.fixture
def answers():
    """Labels `[6]` and logits `[6, 5]`."""
    return np.array([0, 1, 2, 3, 4, 1], "int32"), np.random.default_rng(0).normal(size=(6, CLASSES)).astype("float32")


def keras_loss(labels, logits, **options):
    truth = np.eye(CLASSES, dtype="float32")[labels]
    return keras.losses.CategoricalCrossentropy(from_logits=True, reduction=None, **options)(truth, logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_is_keras(answers, smoothing):
    expected = keras_loss(*answers, label_smoothing=smoothing)
    # One rounding of float32 in another order.
    np.testing.assert_allclose(ClassificationLoss(label_smoothing=smoothing)(*answers), expected, rtol=1e-5)


def test_ordered_classes_in_closed_form(answers):
    """The cross-entropy against the softmax of minus the distance over the temperature."""
    labels, logits = answers
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = []
    for label, row in zip(labels, log_p, strict=True):
        weights = [np.exp(-abs(int(label) - k) / 0.7) for k in range(CLASSES)]
        expected.append(-sum(w / sum(weights) * each for w, each in zip(weights, row, strict=True)))
    np.testing.assert_allclose(ClassificationLoss(order_temperature=0.7)(labels, logits), expected, rtol=1e-5)


def test_both_together_smooth_the_ordered_targets():
    ordered = ClassificationLoss(order_temperature=0.5).targets(4)
    both = ClassificationLoss(order_temperature=0.5, label_smoothing=0.2).targets(4)
    np.testing.assert_allclose(both, 0.8 * ordered + 0.2 / 4)
    np.testing.assert_allclose(both.sum(1), 1.0)


def test_class_weights_multiply_each_image_and_not_the_mean(answers):
    labels, logits = answers
    weights = [0.5, 2.0, 1.0, 0.0, 3.0]
    expected = keras_loss(labels, logits).numpy() * np.array(weights, "float32")[labels]
    for given in (weights, np.array(weights)):
        np.testing.assert_allclose(ClassificationLoss(class_weights=given)(labels, logits), expected, rtol=1e-5)


def test_answers_of_several_batches_are_taken_alike(answers):
    labels, logits = answers
    loss = ClassificationLoss(label_smoothing=0.1, class_weights=[1.0, 2.0, 3.0, 4.0, 5.0])
    stacked = loss(np.stack([labels, labels[::-1]]), np.stack([logits, logits[::-1]]))
    np.testing.assert_array_equal(stacked, np.stack([loss(labels, logits), loss(labels, logits)[::-1]]))


def test_balanced_class_weights():
    weights = balanced_class_weights([30, 10, 0, 20])
    assert weights == [60 / 90, 2.0, 1.0, 1.0]
    # Every class that is there weighs alike, and an image 1 on average.
    assert [count * weight for count, weight in zip([30, 10, 0, 20], weights, strict=True)] == [20, 20, 0, 20]
    assert balanced_class_weights([7, 7]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\). Received: 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"class_weights": [1.0, -1.0]}, "finite and non-negative. Received:"),
        ({"class_weights": [1.0, float("nan")]}, "finite and non-negative. Received:"),
        ({"class_weights": [1.0, float("inf")]}, "finite and non-negative. Received:"),
        ({"order_temperature": 0.0}, "order_temperature must be positive. Received: 0.0"),
    ],
)
def test_mistakes_are_named(mistake, message):
    with pytest.raises(ValueError, match=message):
        ClassificationLoss(**mistake)


def test_as_many_weights_as_classes(answers):
    with pytest.raises(ValueError, match=r"a weight for each of 5 classes. Received: \[1.0, 2.0\]"):
        ClassificationLoss(class_weights=[1.0, 2.0])(*answers)
