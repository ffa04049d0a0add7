"""What `fit` reports: losses and their parts, accuracies, and metrics of the caller's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining
from tests.training.by_hand import ATTACK, craft

WEIGHT = 0.7
CLEAN = {"loss", "clean_loss", "accuracy", "one_off_accuracy"}
BOTH = CLEAN | {"adversarial_loss", "adversarial_accuracy", "adversarial_one_off_accuracy"}


@pytest.fixture
def networks(make_network):
    return {"a": make_network("a"), "b": make_network("b", width=4)}


@pytest.mark.parametrize(
    ("scheme", "figures", "ordered"),
    [
        ("undefended", CLEAN, True),
        ("satm", BOTH | {"domain_loss", "domain_accuracy"}, True),
        ("mutual", BOTH | {"peer_loss"}, True),
        ("trades", {figure for figure in BOTH if "one_off" not in figure}, False),
    ],
)
def test_every_part_is_a_figure_of_its_own(make_network, images, labels, scheme, figures, ordered):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    trainer = CoTraining(networks, scheme, ordered=ordered)
    trainer.compile("sgd")
    expected = {"loss", *(f"{name}_{figure}" for name in networks for figure in figures)}
    history = trainer.fit(images, labels, validation_data=(images, labels), verbose=0).history
    assert set(history) == expected | {f"val_{figure}" for figure in expected}
    assert all(np.isfinite(value).all() for value in history.values())


def test_validation_loss_is_the_sum_over_the_networks(make_network, images, labels):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    trainer = CoTraining(networks, attack=ATTACK, adversarial_weight=WEIGHT)
    trainer.compile("sgd")
    logs = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    expected = {}
    for name, source in (("a", "b"), ("b", "a")):
        losses = [
            keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, networks[name](x, training=False))
            for x in (images, craft(networks[source], images))
        ]
        expected[name] = float(losses[0] + WEIGHT * losses[1])
        assert logs[f"{name}_clean_loss"] == pytest.approx(float(losses[0]), rel=1e-5)
        assert logs[f"{name}_adversarial_loss"] == pytest.approx(float(losses[1]), rel=1e-5)
        assert logs[f"{name}_loss"] == pytest.approx(expected[name], rel=1e-5)
    assert logs["loss"] == pytest.approx(sum(expected.values()), rel=1e-5)


def test_validation_takes_every_source_at_once(make_network, images, labels):
    """Also where they take turns in training; each part is the mean over them."""
    networks = {name: make_network(name, width=3 + index) for index, name in enumerate("abc")}
    trainer = CoTraining(networks, attack=ATTACK, peer_weight=0.5, epsilon_schedule="uniform", ordered=True)
    trainer.compile("sgd")
    logs = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    crafted = [craft(networks[source], images) for source in "bc"]
    answers = {name: [tf.nn.softmax(networks[name](x, training=False)).numpy() for x in crafted] for name in "abc"}
    losses = [-np.log(answer[np.arange(12), labels]) for answer in answers["a"]]
    assert logs["a_adversarial_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    peers = [(p * np.log(p / q)).sum(-1) for peer in "bc" for p, q in zip(answers[peer], answers["a"], strict=True)]
    assert logs["a_peer_loss"] == pytest.approx(np.mean(peers), rel=1e-4)
    hits = np.mean([answer.argmax(-1) == labels for answer in answers["a"]])
    assert logs["a_adversarial_accuracy"] == pytest.approx(hits)
    near = np.mean([np.abs(answer.argmax(-1) - labels) <= 1 for answer in answers["a"]])
    assert logs["a_adversarial_one_off_accuracy"] == pytest.approx(near)


def near_misses(labels, logits):
    """A metric as a function: the share of answers that are wrong by one class."""
    return tf.cast(tf.abs(tf.argmax(logits, -1, tf.int32) - tf.cast(labels, tf.int32)) == 1, tf.float32)


def test_metrics_of_ones_own_are_of_each_network_and_kind_of_image(networks, images, labels):
    trainer = CoTraining(networks, learns_from={"a": "b", "b": "nobody"}, attack=ATTACK)
    cross_entropy = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="nats")
    trainer.compile(
        "sgd", metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2), cross_entropy, near_misses]
    )
    logs = trainer.evaluate(images, labels, batch_size=5, verbose=0, return_dict=True)
    answers = {
        "a": networks["a"](images, training=False).numpy(),
        "a_adversarial": networks["a"](craft(networks["b"], images), training=False).numpy(),
        "b": networks["b"](images, training=False).numpy(),
    }
    names = {"accuracy", "sparse_top_k_categorical_accuracy", "nats", "near_misses"}
    assert {key for key in logs if "loss" not in key} == {f"{which}_{name}" for which in answers for name in names}
    for which, logits in answers.items():
        ranks = (logits > logits[np.arange(12), labels][:, None]).sum(-1)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert logs[f"{which}_sparse_top_k_categorical_accuracy"] == pytest.approx(np.mean(ranks < 2))
        assert logs[f"{which}_nats"] == pytest.approx(-np.mean(log_p[np.arange(12), labels]), rel=1e-5)
        assert logs[f"{which}_near_misses"] == pytest.approx(np.mean(np.abs(logits.argmax(-1) - labels) == 1))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([keras.metrics.SparseCategoricalAccuracy(name="accuracy")], "'a_accuracy' is already the name of a figure"),
        ([keras.metrics.Mean(name="clean_loss")], "'a_clean_loss' is already the name of a figure"),
        ([near_misses, near_misses], "different names. Received: near_misses, near_misses"),
        ({"a": "accuracy"}, "one list, of which every network gets a copy. Received: {'a'"),
        ([["accuracy"]], "one list, of which every network gets a copy"),
        (["acuracy"], "acuracy"),
    ],
)
def test_metrics_that_cannot_be_are_refused(networks, metrics, message):
    with pytest.raises(ValueError, match=message):
        CoTraining(networks, "undefended").compile("sgd", metrics=metrics)


@pytest.mark.parametrize(
    ("given", "in_data", "expected"), [(None, True, True), (None, False, False), (False, True, False)]
)
def test_the_order_of_classes_comes_from_the_data_unless_given(networks, images, labels, given, in_data, expected):
    data = tf.data.Dataset.from_tensors((images, labels))
    data.ordered = in_data
    trainer = CoTraining(networks, "undefended", ordered=given)
    trainer.compile("sgd")
    assert "a_one_off_accuracy" not in trainer.evaluate(images, labels, verbose=0, return_dict=True)
    history = trainer.fit(data, validation_data=data, verbose=0).history
    assert (trainer.ordered, "val_a_one_off_accuracy" in history) == (expected, expected)
    again = trainer.fit(images, labels, verbose=0).history  # arrays do not say
    assert "a_one_off_accuracy" not in again
