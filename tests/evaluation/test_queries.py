"""Attackers who only ask: budgets of one search, a start that transfers, and images that nobody asked about."""

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.attacks import FGSM, SquareAttack
from satm_tf.evaluation import assess
from satm_tf.evaluation.queries import measure_queries
from satm_tf.evaluation.rungs import Group


class Mixed:
    """Two classes, by a weighted mean of the channels against what lies above the left half of the image."""

    num_classes = 2
    differentiable = True

    def __init__(self, weights):
        self.weights, self.fingerprint = tf.constant(weights, tf.float32), repr(weights)

    def __call__(self, images, training=None):
        pattern = tf.constant([[1.0, -1.0] * 4] * 8)[None, :, :, None]
        score = tf.reduce_mean(images * pattern * self.weights, axis=(1, 2, 3))
        return tf.stack([-score, score], axis=-1)


@pytest.fixture(scope="module")
def dataset():
    labels = np.arange(12, dtype=np.int32) % 2
    pattern = np.tile([1.0, -1.0], 4)[None, None, :, None] * (2 * labels[:, None, None, None] - 1)
    images = np.broadcast_to(0.5 + 0.06 * pattern, [12, 8, 8, 3]).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(6)


def test_a_start_that_transfers_saves_the_queries(dataset):
    target, twin = Mixed([1.0, 1.0, 1.0]), Mixed([0.9, 1.0, 1.1])
    found = assess(
        {"mine": target},
        {"twin/mine": twin},
        dataset=dataset,
        attacks=[FGSM(epsilon=0.1)],
        queries=[20, 2, 5],
        query_limit=8,
        check_limit=0,
    )
    asked = found.results[found.results.rung == "queries"].set_index("attack")
    assert list(asked.index) == [f"{kind}-{n}" for kind in ("square", "transfer+square") for n in (2, 5, 20)]
    assert set(asked.images) == {8}, "of the twelve images, eight were asked about"
    assert set(asked.source) == {"queries"}
    assert asked.accuracy["transfer+square-2"] == 0.0, "the twin's example fools at once"
    assert asked.accuracy["square-2"] == 1.0, "squares alone have to search"
    assert asked.accuracy["square-20"] <= asked.accuracy["square-5"]
    assert not set(found.leaking.attack) & set(asked.index)


def test_a_budget_is_a_moment_of_one_search(dataset):
    images, labels = next(iter(dataset))
    asked = []

    def counting(x, training=None):
        asked.append(len(x))
        return Mixed([1.0, 1.0, 1.0])(x)

    whole = SquareAttack(epsilon=0.07, queries=12)
    seed = tf.constant([0, 3])
    early, late = whole.search(counting, images, labels, seed, budgets=[4, 12])
    assert len(asked) <= 13, "twelve queries, and a look at the clean images"
    np.testing.assert_array_equal(late, whole(Mixed([1.0, 1.0, 1.0]), images, labels, seed=seed))
    assert np.abs(early - images).max() <= 0.07 + 1e-6

    del asked[:]
    weaker, stronger = images, images + 0.05 * tf.sign(0.5 - images)
    (best,) = whole.search(counting, images, labels, seed, starts=[weaker, stronger], budgets=[2])
    np.testing.assert_array_equal(best, stronger)
    assert len(asked) == 3
    for budgets in ([5, 4], [1], [13]):
        with pytest.raises(ValueError, match="Budgets must increase"):
            whole.search(counting, images, labels, seed, starts=[weaker, stronger], budgets=budgets)


def test_starts_are_crafted_once_for_all_targets_and_finished_batches_are_kept(dataset, tmp_path, monkeypatch):
    crafted = []

    def counting(attack, network):
        def craft(images, labels, **options):
            crafted.append(network)
            return attack(network, images, labels, **options)

        return craft

    monkeypatch.setattr(FGSM, "compiled", counting)
    targets = {name: Mixed([1.0, 1.0, share]) for name, share in (("a", 1.0), ("b", 0.8), ("c", 0.6))}
    sources = {f"twin/{name}": Mixed([0.9, 1.0, share]) for name, share in (("x", 1.1), ("y", 0.7))}
    labels = np.concatenate([labels for _, labels in dataset])
    options = {
        "targets": targets,
        "sources": sources,
        "dataset": dataset,
        "chosen": np.ones(12, bool),
        "labels": labels,
        "attacks": {"fgsm": FGSM(epsilon=0.1)},
        "epsilon": 0.1,
        "budgets": [4],
        "groups": {"twin": Group("twin")},
        "folder": tmp_path,
    }
    found = measure_queries(**options)
    assert len(crafted) == 2 * 2, "two sources, two batches, whatever the number of targets"

    files = sorted(tmp_path.iterdir())
    assert len(files) == 3 * 2 * 2, "a file for each target, search and batch"
    next(path for path in files if "transfer" in path.name).unlink()
    again = measure_queries(**options)
    assert len(crafted) == 2 * 2 + 2, "the sources craft again for the batch that is missing"
    np.testing.assert_array_equal(again.predicted, found.predicted)
