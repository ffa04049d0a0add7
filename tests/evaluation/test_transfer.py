from collections import Counter

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from satm_tf.attacks import FGSM, Attack, Ensemble, RandomisedStep
from satm_tf.evaluation import measure, transfer_matrix
from satm_tf.evaluation.blocks import fingerprint
from satm_tf.evaluation.rungs import Group
from tests.evaluation.conftest import Channel


@pytest.fixture
def dataset():
    """Ten images, five dark and five bright in all channels by 0.05, in batches of four."""
    labels = np.arange(10, dtype=np.int32) % 2
    images = np.full((10, 4, 4, 3), 0.5, np.float32) + 0.05 * (2 * labels[:, None, None, None] - 1)
    return tf.data.Dataset.from_tensor_slices((images.astype(np.float32), labels)).batch(4)


FGSM_ALONE = {"fgsm": FGSM(epsilon=0.1)}


def rate(frame, source, target, attack="fgsm"):
    (row,) = frame[(frame.attack == attack) & (frame.source == source) & (frame.target == target)].to_dict("records")
    return row["accuracy"]


def test_a_source_that_fools_one_of_two_targets_shows_in_the_right_cell(dataset):
    red, green = {"red": Channel(0)}, {"green": Channel(1)}
    options = {"dataset": dataset, "attacks": FGSM_ALONE}
    predictions = measure(sources=red, targets={**red, **green}, **options)
    frame = predictions.frame()
    assert rate(frame, "", "red", "clean") == rate(frame, "", "green", "clean") == 1.0
    assert rate(frame, "red", "red") == 0.0  # its own channel moved by twice the margin
    assert rate(frame, "red", "green") == 1.0  # whose channel has no gradient, and sign(0) is 0
    assert frame[["attack", "epsilon", "source", "target", "images"]].values.tolist() == [
        ["clean", 0.0, "", "red", 10],
        ["clean", 0.0, "", "green", 10],
        ["fgsm", 0.1, "red", "red", 10],
        ["fgsm", 0.1, "red", "green", 10],
    ]
    assert set(frame.one_off_accuracy) == {1.0}  # of two classes, every one is beside every other
    # Ten of ten and none of ten, as statsmodels has it.
    ends = frame[["accuracy_low", "accuracy_high"]].to_numpy()
    assert ends[0].tolist() == pytest.approx([0.72247, 1.0], abs=1e-5)
    assert ends[2, 1] == pytest.approx(0.27753, abs=1e-5)
    assert predictions.confusion("fgsm", 0.1, "red", "red").tolist() == [[0, 5], [5, 0]]
    assert predictions.confusion("fgsm", 0.1, "red", "green").tolist() == [[5, 0], [0, 5]]
    assert not predictions.correct("fgsm", 0.1, "red", "red").any()
    with pytest.raises(KeyError, match="from 'green' on 'red'"):
        predictions.correct("fgsm", 0.1, "green", "red")

    swapped = transfer_matrix(sources={**red, **green}, targets=green, ordered=False, **options)
    assert rate(swapped, "red", "green") == 1.0
    assert rate(swapped, "green", "green") == 0.0
    assert swapped.one_off_accuracy.isna().all()


def test_each_source_crafts_once_for_all_targets_and_every_network_is_traced_once(dataset):
    counts = Counter()

    def counted(what, tensor):
        counts[f"{what}, traced"] += 1
        with tf.control_dependencies([tf.py_function(lambda: counts.update([what]), [], [])]):
            return tf.identity(tensor)

    class Still(Attack):
        def perturb(self, model, images, labels, epsilon, seed):
            return counted("crafts", images)

    class Target(Channel):
        def __call__(self, images, training=None):
            return counted("predictions", super().__call__(images))

    measure(
        sources={name: Channel(0) for name in "abc"},
        targets={name: Target(0) for name in "abcd"},
        dataset=dataset,
        attacks={"x": Still(epsilon=0.1), "y": Still(epsilon=0.1)},
        epsilons={"x": [0.1, 0.2]},
    )
    batches, radii = 3, 2 + 1
    assert counts == {
        "crafts": batches * radii * 3,
        "crafts, traced": 2 * 3,
        "predictions": batches * 4 * (1 + radii * 3),
        "predictions, traced": 4,
    }


def test_equals_a_plain_loop_on_a_keras_network(make_network, images, labels):
    network, other = make_network("a"), make_network("b", width=4)
    attack = FGSM(epsilon=0.2)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)
    measured = measure(sources={"a": network}, targets={"b": other}, dataset=dataset, attacks={"fgsm": attack})
    expected = np.argmax(other(attack(network, images, labels)), -1)
    np.testing.assert_array_equal(measured.row("fgsm", 0.2, "a", "b"), expected)


def test_the_seed_decides_the_random_numbers(make_network, images, labels):
    network = make_network("a")
    dataset = tf.data.Dataset.from_tensor_slices((np.tile(images, (8, 1, 1, 1)), np.tile(labels, 8))).batch(48)

    def predicted(seed):
        options = {"sources": {"a": network}, "targets": {"a": network}, "dataset": dataset, "seed": seed}
        return measure(**options, attacks={"r": RandomisedStep(epsilon=0.3)}).predicted

    first = predicted(1)
    np.testing.assert_array_equal(predicted(1), first)
    assert (predicted(2) != first).any()


def test_bad_input(dataset, make_network):
    options = {"sources": {}, "dataset": dataset, "attacks": {}}
    with pytest.raises(ValueError, match="at least one target"):
        transfer_matrix(targets={}, **options)
    with pytest.raises(ValueError, match="is reserved for clean images"):
        transfer_matrix(targets={"a": Channel(0)}, **{**options, "attacks": {"clean": FGSM(epsilon=0.1)}})
    with pytest.raises(ValueError, match="empty dataset"):
        transfer_matrix(targets={"a": Channel(0)}, **{**options, "dataset": dataset.take(0)})
    with pytest.raises(ValueError, match="'b': 4"):
        transfer_matrix(targets={"a": Channel(0), "b": make_network("b")}, **options)


def test_several_epsilons_of_one_attack(dataset):
    red = Channel(0)
    options = {"sources": {"red": red}, "targets": {"red": red}, "dataset": dataset}
    frame = transfer_matrix(
        **options,
        attacks={"fgsm": FGSM(epsilon=0.1), "weak": FGSM(epsilon=0.01)},
        epsilons={"fgsm": [0.02, 0.1]},
    )
    # The margin is 0.05: only 0.1 takes it away. An attack that is not named has its own epsilon.
    assert frame[["attack", "epsilon", "accuracy"]].values.tolist() == [
        ["clean", 0.0, 1.0],
        ["fgsm", 0.02, 1.0],
        ["fgsm", 0.1, 0.0],
        ["weak", 0.01, 1.0],
    ]
    with pytest.raises(ValueError, match=r"Received: \{'fgms'"):
        transfer_matrix(**options, attacks={"fgsm": FGSM(epsilon=0.1)}, epsilons={"fgms": [0.1]})


class KilledError(Exception):
    pass


class Weighted(Channel):
    """A network whose weights are an array, which its fingerprint covers."""

    def __init__(self, *weights):
        self.weights = np.array(weights, np.float32)

    def __call__(self, images, training=None):
        brightness = tf.reduce_mean((images - 0.5) * self.weights, axis=(1, 2, 3))
        return tf.stack([-brightness, brightness], axis=-1)


@pytest.fixture
def measured(dataset, tmp_path):
    """A measurement of two networks at two epsilons that counts what it crafts and can be killed."""
    a, b = Weighted(1, 2, 0), Weighted(0, 1, 1)
    calls = []

    def run(kill_after=None, folder=tmp_path / "blocks", **changes):
        calls.clear()

        class Watched(Attack):
            def perturb(self, model, images, labels, epsilon, seed):
                def count():
                    calls.append(1)
                    if kill_after is not None and len(calls) > kill_after:
                        raise KilledError

                with tf.control_dependencies([tf.py_function(count, [], [])]):
                    return images + epsilon * tf.random.stateless_uniform(tf.shape(images), seed, -1.0, 1.0)

        options = {
            "sources": {"a": a, "b": b},
            "targets": {"a": a, "b": b},
            "dataset": dataset,
            "attacks": {"r": Watched(epsilon=0.3)},
            "epsilons": {"r": [0.1, 0.3]},
            "folder": folder,
        }
        return transfer_matrix(**{**options, **changes}), len(calls)

    run.networks = a, b
    return run


def test_a_killed_measurement_goes_on_and_ends_as_one_that_was_not(measured, tmp_path):
    whole, calls = measured(folder=None)
    assert calls == 2 * 2 * 3  # sources, epsilons, batches
    with pytest.raises(tf.errors.UnknownError, match="KilledError"):
        measured(kill_after=7)  # in the third block
    resumed, calls = measured()
    assert calls == 2 * 3
    pd.testing.assert_frame_equal(resumed, whole)
    again, calls = measured()
    assert calls == 0
    pd.testing.assert_frame_equal(again, whole)
    assert not list((tmp_path / "blocks").glob(".*")), "nothing half written is left"


def test_a_stale_block_is_not_taken_for_a_fresh_one(measured, dataset):
    measured()
    a, _ = measured.networks
    all_blocks, of_one = 12, 6
    assert measured(seed=1)[1] == all_blocks
    assert measured(dataset=dataset.map(lambda images, labels: (images[::-1], labels)))[1] == all_blocks
    assert measured(dataset=dataset.map(lambda images, labels: (images, labels[::-1])))[1] == all_blocks
    assert measured(dataset=dataset.unbatch().batch(5).apply(tf.data.experimental.assert_cardinality(2)))[1] == 8
    assert measured(targets={"a": a})[1] == all_blocks
    assert measured(epsilons={"r": [0.1, 0.2]})[1] == of_one
    assert measured()[1] == 0
    a.weights = a.weights + np.float32(1e-3)
    assert measured()[1] == all_blocks  # those of b show a's answers


def test_fingerprints_tell_networks_apart(make_network, images, tmp_path):
    network = make_network("a", dropout=0.5)
    before = fingerprint(network)
    network(images)
    assert fingerprint(network) == before
    network.save(tmp_path / "a.keras")
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    assert fingerprint(loaded) == fingerprint(network), "dropout's seeds are drawn anew, and do not matter"
    other = make_network("a", dropout=0.5)
    assert fingerprint(other) != fingerprint(network)
    pairs = [Ensemble([network, other]), Ensemble([other, network]), Ensemble([network, other], fuse="losses")]
    assert len({fingerprint(pair) for pair in pairs}) == 3
    assert fingerprint(Channel(0)) != fingerprint(Channel(1))
    with pytest.raises(ValueError, match="attribute `fingerprint`"):
        fingerprint(lambda images, training=None: images)


def test_logits_that_are_no_numbers_are_refused(dataset):
    class Diverged(Channel):
        def __call__(self, images, training=None):
            return super().__call__(images) / 0.0 * 0.0

    with pytest.raises(FloatingPointError, match="'bad': 10"):
        transfer_matrix(sources={}, targets={"good": Channel(0), "bad": Diverged(0)}, dataset=dataset, attacks={})


def test_one_surrogate_fools_one_target_on_its_own_rung(dataset):
    groups = {"strong": Group("defended"), "readers.satm": Group("same_scheme", "satm")}
    measured = measure(
        sources={"strong/x": Channel(0), "readers.satm/y": Channel(1)},
        targets={"satm/red": Channel(0), "satm/blue": Channel(2), "pgd/green": Channel(1)},
        dataset=dataset,
        attacks={"fgsm": FGSM(epsilon=0.1)},
        groups=groups,
    )
    attacked = measured.cells.attack == "fgsm"
    rungs = measured.cells[attacked].set_index(["source", "target"]).rung.to_dict()
    assert rungs == {
        ("strong/x", "satm/red"): "defended",
        ("strong/x", "satm/blue"): "defended",
        ("strong/x", "pgd/green"): "defended",
        ("readers.satm/y", "satm/red"): "same_scheme",
        ("readers.satm/y", "satm/blue"): "same_scheme",
    }, "who reads about satm attacks nobody else"
    worst = {(rung, target): measured.worst(target, [rung]).mean() for (_, target), rung in rungs.items()}
    assert {pair for pair, rate in worst.items() if rate < 1} == {("defended", "satm/red")}
    assert measured.worst("satm/red").mean() == 0.0
    assert measured.worst("satm/blue").mean() == 1.0
