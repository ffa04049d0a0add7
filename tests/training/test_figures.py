"""What `fit` reports: losses and their parts, accuracies, and metrics of the caller's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining
from tests.training.by_hand import ATTACK, craft


@pytest.fixture
def networks(make_network):
    return {"a": make_network("a"), "b": make_network("b", width=4)}


def test_every_part_is_a_figure_of_its_own(networks, images, labels):
    trainer = CoTraining(networks, "satm", peer_weight=0.5, pairing_weight=0.5, gradient_penalty=0.1, ordered=True)
    trainer.compile("sgd")
    losses = [f"{part}_loss" for part in ("clean", "adversarial", "pairing", "peer", "gradient", "domain")]
    accuracies = [f"{kind}{one}accuracy" for kind in ("", "adversarial_") for one in ("", "one_off_")]
    figures = ["loss", *losses, *accuracies, "domain_accuracy"]
    expected = {"loss", *(f"{name}_{figure}" for name in networks for figure in figures)}
    history = trainer.fit(images, labels, validation_data=(images, labels), verbose=0).history
    assert set(history) == expected | {f"val_{figure}" for figure in expected}
    assert all(np.isfinite(value).all() for value in history.values())


def test_validation_takes_every_source_at_once_and_its_loss_is_the_sum_over_the_networks(make_network, images, labels):
    """Also where they take turns in training; each part is the mean over them."""
    networks = {name: make_network(name, width=3 + index) for index, name in enumerate("abc")}
    options = {"adversarial_weight": 0.7, "peer_weight": 0.5, "epsilon_schedule": "uniform", "ordered": True}
    trainer = CoTraining(networks, attack=ATTACK, **options)
    trainer.compile("sgd")
    logs = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    total, rows = 0.0, np.arange(12)
    for name, network in networks.items():
        crafted = [craft(networks[source], images) for source in networks if source != name]
        clean, *answers = (tf.nn.softmax(network(x, training=False)).numpy() for x in (images, *crafted))
        peers = [
            tf.nn.softmax(networks[peer](x, training=False)).numpy()
            for peer in networks
            if peer != name
            for x in crafted
        ]
        parts = {
            "clean_loss": np.mean(-np.log(clean[rows, labels])),
            "adversarial_loss": np.mean([-np.log(answer[rows, labels]) for answer in answers]),
            "peer_loss": np.mean(
                [(p * np.log(p / q)).sum(-1) for p, q in zip(peers, [*answers, *answers], strict=True)]
            ),
        }
        parts["loss"] = parts["clean_loss"] + 0.7 * parts["adversarial_loss"] + 0.5 * parts["peer_loss"]
        total += parts["loss"]
        for part, value in parts.items():
            assert logs[f"{name}_{part}"] == pytest.approx(value, rel=1e-4 if part == "peer_loss" else 1e-5)
        errors = [np.abs(answer.argmax(-1) - labels) for answer in answers]
        assert logs[f"{name}_adversarial_accuracy"] == pytest.approx(np.equal(errors, 0).mean())
        assert logs[f"{name}_adversarial_one_off_accuracy"] == pytest.approx(np.less_equal(errors, 1).mean())
    assert logs["loss"] == pytest.approx(total, rel=1e-5)


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


@pytest.mark.parametrize(("given", "expected"), [(None, True), (False, False)])
def test_the_order_of_classes_comes_from_the_data_unless_given(make_network, images, labels, given, expected):
    data = tf.data.Dataset.from_tensors((images, labels))
    data.ordered = True
    trainer = CoTraining({"a": make_network("a")}, "undefended", ordered=given)
    trainer.compile("sgd")
    assert "a_one_off_accuracy" not in trainer.evaluate(images, labels, verbose=0, return_dict=True)
    history = trainer.fit(data, validation_data=data, verbose=0).history
    assert (trainer.ordered, "val_a_one_off_accuracy" in history) == (expected, expected)
    again = trainer.fit(images, labels, verbose=0).history  # arrays do not say
    assert "a_one_off_accuracy" not in again
