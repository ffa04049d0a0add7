"""The steps of every scheme against the formulas written out in `reference`, and who learns from whom when."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining
from satm_tf.training import SCHEMES
from tests.training import reference
from tests.training.reference import CASES, RATE

# Float32 sums in another order; what a wrong step moves is tested to be a hundred times as much.
TOLERANCE = 5e-6


@pytest.fixture
def make(make_network):
    """A function that makes the networks of a name's letters: b has batch normalisation, and none is like another."""

    def one(name):
        return make_network(name, batch_norm=name == "b", width=3 + "oabc".index(name))

    return lambda names: {name: one(name) for name in names}


def copies(make, networks):
    """Networks with the same weights."""
    others = make(networks)
    for name, other in others.items():
        other.set_weights(networks[name].get_weights())
    return others


def heads_of(trainer):
    return {name: [tf.Variable(v) for v in head.trainable_variables] for name, head in trainer.domain_heads.items()}


def assert_same(trainer, networks, heads, tolerance=TOLERANCE):
    for name, network in networks.items():
        for ours, expected in zip(trainer.networks[name].weights, network.weights, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=f"{name}: {ours.path}")
    for name, head in heads.items():
        for ours, expected in zip(trainer.domain_heads[name].weights, head, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=f"{name}: {ours.path}")


def test_there_is_a_case_for_every_preset():
    assert set(CASES) == set(SCHEMES)


@pytest.mark.parametrize("scheme", CASES)
def test_the_steps_of_every_preset(make, images, labels, arrays, scheme):
    """As many steps as there are turns: the weights after them, and the figures that each reports."""
    case = CASES[scheme]
    networks = make("".join(case.turns[0]))
    frozen = make("o") if any("o" in turn.values() for turn in case.turns) else {}
    trainer = CoTraining(networks, scheme, frozen=frozen, seed=5)
    trainer.compile(keras.optimizers.SGD(RATE))
    expected, heads, untouched = copies(make, networks), heads_of(trainer), [arrays(each) for each in frozen.values()]
    assert bool(heads) == ("reversal" in case.domain)
    before = copies(make, networks)

    for count in range(len(case.turns)):
        figures = reference.step(case, expected, frozen, heads, images, labels, count, seed=5)
        trainer.reset_metrics()
        reported = trainer.train_on_batch(images, labels, return_dict=True)
        assert set(reported) == set(figures)
        for name, value in figures.items():
            assert reported[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name

    assert_same(trainer, expected, heads)
    with pytest.raises(AssertionError):
        assert_same(trainer, before, {}, 100 * TOLERANCE)
    for state, network in zip(untouched, frozen.values(), strict=True):
        for old, new in zip(state, arrays(network), strict=True):
            np.testing.assert_array_equal(old, new)
