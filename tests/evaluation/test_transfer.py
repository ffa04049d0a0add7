import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from satm_tf.attacks import FGSM, Attack, RandomisedStep
from satm_tf.evaluation import transfer_matrix


class Linear:
    """Logits that look at one channel: class 1 where it is bright. `weight` 0 is a network that no attack can steer."""

    num_classes = 2

    def __init__(self, channel):
        self.channel = channel

    def __call__(self, images, training=None):
        brightness = tf.reduce_mean(images[..., self.channel], axis=(1, 2)) - 0.5
        return tf.stack([-brightness, brightness], axis=-1)


@pytest.fixture
def dataset():
    """Ten images, five dark and five bright in all channels by 0.05, in batches of four."""
    labels = np.arange(10, dtype=np.int32) % 2
    images = np.full((10, 4, 4, 3), 0.5, np.float32) + 0.05 * (2 * labels[:, None, None, None] - 1)
    return tf.data.Dataset.from_tensor_slices((images.astype(np.float32), labels)).batch(4)


def rate(frame, source, target, attack="fgsm"):
    (row,) = frame[(frame.attack == attack) & (frame.source == source) & (frame.target == target)].to_dict("records")
    return row["classification_rate"]


def test_a_source_that_fools_one_of_two_targets_shows_in_the_right_cell(dataset):
    red, green = Linear(0), Linear(1)
    frame = transfer_matrix(
        sources={"red": red},
        targets={"red": red, "green": green},
        dataset=dataset,
        attacks={"fgsm": FGSM(epsilon=0.1)},
    )
    assert rate(frame, "", "red", "clean") == rate(frame, "", "green", "clean") == 1.0
    assert rate(frame, "red", "red") == 0.0  # its own channel moved by twice the margin
    assert rate(frame, "red", "green") == 1.0  # whose channel has no gradient, and sign(0) is 0
    swapped = transfer_matrix(
        sources={"red": red, "green": green},
        targets={"green": green},
        dataset=dataset,
        attacks={"fgsm": FGSM(epsilon=0.1)},
    )
    assert rate(swapped, "red", "green") == 1.0
    assert rate(swapped, "green", "green") == 0.0


def test_columns_counts_and_one_off(dataset):
    red = Linear(0)
    options = {
        "sources": {"red": red},
        "targets": {"red": red},
        "dataset": dataset,
        "attacks": {"a": FGSM(epsilon=0.1)},
    }
    frame = transfer_matrix(**options)
    assert frame[["attack", "epsilon", "source", "images"]].values.tolist() == [
        ["clean", 0.0, "", 10],
        ["a", 0.1, "red", 10],
    ]
    assert frame.one_off_rate.tolist() == [1.0, 1.0]  # of two classes, every one is beside every other
    assert transfer_matrix(**options, ordered=False).one_off_rate.isna().all()


def test_each_source_crafts_once_for_all_targets(dataset):
    calls = []

    class Counting(Attack):
        def perturb(self, model, images, labels, epsilon, seed):
            tf.py_function(lambda: calls.append(1), [], [])
            return images

    red = Linear(0)
    transfer_matrix(
        sources={"a": red},
        targets={"a": red, "b": red, "c": red},
        dataset=dataset,
        attacks={"c": Counting(epsilon=0.1)},
    )
    assert len(calls) == len(dataset)


def test_equals_a_plain_loop_on_a_keras_network(make_network, images, labels):
    network, other = make_network("a"), make_network("b", width=4)
    attack = FGSM(epsilon=0.2)
    frame = transfer_matrix(
        sources={"a": network},
        targets={"b": other},
        dataset=tf.data.Dataset.from_tensor_slices((images, labels)).batch(5),
        attacks={"fgsm": attack},
    )
    predicted = np.argmax(other(attack(network, images, labels)), -1)
    assert rate(frame, "a", "b") == np.mean(predicted == labels)


def test_the_seed_decides_the_random_numbers(make_network, images, labels):
    network = make_network("a")
    dataset = tf.data.Dataset.from_tensor_slices((np.tile(images, (8, 1, 1, 1)), np.tile(labels, 8))).batch(48)

    def measure(seed):
        options = {"sources": {"a": network}, "targets": {"a": network}, "dataset": dataset, "seed": seed}
        return transfer_matrix(**options, attacks={"r": RandomisedStep(epsilon=0.3)})

    pd.testing.assert_frame_equal(measure(1), measure(1))
    rates = {measure(seed).classification_rate.iloc[-1] for seed in range(5)}
    assert len(rates) > 1, "five seeds that all give one rate are not used"


def test_bad_input(dataset):
    options = {"sources": {}, "dataset": dataset, "attacks": {}}
    with pytest.raises(ValueError, match="at least one target"):
        transfer_matrix(targets={}, **options)
    with pytest.raises(ValueError, match="stands for no attack"):
        transfer_matrix(targets={"a": Linear(0)}, **{**options, "attacks": {"clean": FGSM(epsilon=0.1)}})
    with pytest.raises(ValueError, match="empty dataset"):
        transfer_matrix(targets={"a": Linear(0)}, **{**options, "dataset": dataset.take(0)})
