"""The steps of every scheme against the formulas written out in `reference`, and who learns from whom when."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining, DomainAdversarial
from satm_tf.attacks import RSFGSM, RandomisedStep
from satm_tf.training import SCHEMES
from tests.training import reference
from tests.training.reference import CASES, RANDOMISED, RATE, Case

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


def take(trainer, case, networks, frozen, images, labels, steps):
    """Lets the trainer and the reference take the same steps and compares what they report and what comes out."""
    trainer.compile(keras.optimizers.SGD(RATE))
    heads = {name: [tf.Variable(v) for v in head.trainable_variables] for name, head in trainer.domain_heads.items()}
    assert bool(heads) == ("reversal" in case.domain)
    for count in range(steps):
        figures = reference.step(case, networks, frozen, heads, images, labels, count, trainer.seed)
        trainer.reset_metrics()
        reported = trainer.train_on_batch(images, labels, return_dict=True)
        assert set(reported) == set(figures)
        for name, value in figures.items():
            assert reported[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert int(trainer.step) == steps
    for name, network in networks.items():
        assert_close(trainer.networks[name].weights, network.weights, steps * TOLERANCE)
    for name, head in heads.items():
        assert_close(trainer.domain_heads[name].weights, head, steps * TOLERANCE)


def assert_close(ours, expected, tolerance):
    for variable, value in zip(ours, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=0, atol=tolerance, err_msg=variable.path)


def test_there_is_a_case_for_every_preset():
    assert {*CASES, "sparring", "recommended", "distillation"} == set(SCHEMES), "tested below, or in test_objective"


@pytest.mark.parametrize("scheme", CASES)
def test_the_steps_of_every_preset(make, images, labels, arrays, scheme):
    """As many steps as there are turns: the weights after them, and the figures that each reports."""
    case = CASES[scheme]
    networks = make("".join(case.turns[0]))
    frozen = make("o") if any("o" in turn.values() for turn in case.turns) else {}
    before, untouched = copies(make, networks), [arrays(each) for each in frozen.values()]
    trainer = CoTraining(networks, scheme, frozen=frozen, ordered=True, seed=5)
    take(trainer, case, copies(make, networks), frozen, images, labels, steps=len(case.turns))
    for name, network in networks.items():
        with pytest.raises(AssertionError):
            assert_close(network.weights, before[name].weights, 100 * TOLERANCE)
    for state, network in zip(untouched, frozen.values(), strict=True):
        assert network.trainable, "a frozen network is the caller's, and keeps its settings"
        assert not any(v is w for v in trainer.variables for w in network.variables)
        for old, new in zip(state, arrays(network), strict=True):
            np.testing.assert_array_equal(old, new)


GRAPHS = {
    "three in turn": (
        {"learns_from": "others"},
        Case([{"a": "b", "b": "c", "c": "a"}, {"a": "c", "b": "a", "c": "b"}], RANDOMISED),
    ),
    # Turns come round together after as many steps as the least common multiple of their numbers.
    "a graph of one's own": (
        {"learns_from": {"a": ["itself", "o"], "b": ["c", "a", "o"], "c": "nobody"}},
        Case([{"a": a, "b": b, "c": ""} for a, b in ("ac", "oa", "ao", "oc", "aa", "oo")], RANDOMISED),
    ),
    "all at once": (
        {"learns_from": ("others", "frozen"), "mixing": "all", "adversarial_weight": 0.7, "clean_weight": 0.5},
        Case([{"a": "bco", "b": "cao", "c": "abo"}], RANDOMISED, adversarial=0.7, clean=0.5),
    ),
    "a domain for each in turn": (
        {
            "learns_from": ("others", "itself"),
            "domain_adaptation": DomainAdversarial(domains="sources", weight=0.5, strength=0.8, hidden=5),
        },
        Case(
            [{"a": "b", "b": "c", "c": "a"}, {"a": "c", "b": "a", "c": "b"}, {"a": "a", "b": "b", "c": "c"}],
            RANDOMISED,
            domain="reversal of each",
            domain_weight=0.5,
            strength=0.8,
        ),
    ),
    "peers of three": (
        {"learns_from": "itself", "peer_weight": 0.4},
        Case([{"a": "a", "b": "b", "c": "c"}], RANDOMISED, peer=0.4),
    ),
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_steps_of_three_networks(make, images, labels, graph):
    fields, case = GRAPHS[graph]
    networks = make("abc")
    frozen = make("o") if "o" in str(case.turns) else {}
    trainer = CoTraining(networks, frozen=frozen, attack=RANDOMISED, ordered=True, seed=2, **fields)
    steps = len(case.turns) + (len(case.turns) in (2, 3))  # a short cycle begins again
    take(trainer, case, copies(make, networks), frozen, images, labels, steps)


def test_ensemble_adversarial_training_is_simultaneous_training_with_the_partner_frozen(make, images, labels):
    """To the bit. Had a been updated first, b's step would differ by far more than rounding."""
    attack = RandomisedStep(epsilon=reference.EPSILON, alpha=0.0)  # no random numbers, so that no place matters

    def train(networks, frozen):
        trainer = CoTraining(networks, learns_from="frozen" if frozen else "others", attack=attack, frozen=frozen)
        trainer.compile(keras.optimizers.SGD(RATE))
        trainer.train_on_batch(images, labels)

    together = make("ab")
    ensemble, partner, sequential = (copies(make, together) for _ in range(3))
    train(together, {})
    train({"a": ensemble["a"]}, {"b": partner["b"]})
    for ours, expected in zip(ensemble["a"].weights, together["a"].weights, strict=True):
        np.testing.assert_array_equal(ours, expected)
    train({"b": sequential["b"]}, {"a": ensemble["a"]})
    with pytest.raises(AssertionError):
        assert_close(sequential["b"].weights, together["b"].weights, 100 * TOLERANCE)


def by_image(names, attack, networks, images, labels, count, seed, order_of_all, weights):
    """A batch of which each of the named sources makes its share: the sources of single images, and the images."""
    fold_in = tf.random.experimental.stateless_fold_in
    numbers = fold_in([seed, 0], tf.constant(count, tf.int64))
    total = len(images)
    order = np.argsort(tf.random.stateless_uniform([total], fold_in(numbers, -1)))
    left = float(tf.random.stateless_uniform([], fold_in(numbers, -2)))
    ends = np.floor(np.cumsum(weights) / np.sum(weights) * total + left).astype(int)
    ends[-1] = total
    mixed, makers = np.zeros_like(images), np.empty(total, object)
    for name, begin, end in zip(names, [0, *ends], ends, strict=False):
        rows, own = order[begin:end], fold_in(numbers, order_of_all.index(name))
        if name.startswith("sparring"):  # which crafts from the whole batch for itself
            mixed[rows] = attack(networks[name], images, labels, seed=own).numpy()[rows]
        elif len(rows):
            mixed[rows] = attack(networks[name], images[rows], labels[rows], seed=own).numpy()
        makers[rows] = name
    return makers, mixed


@pytest.mark.parametrize(
    ("scheme", "weights"), [("sparring", None), ("sparring", {"before_itself": 3.0}), ("recommended", None)]
)
def test_the_steps_of_sources_that_share_each_batch(make, images, labels, scheme, weights):
    """Two steps: `before` is what the networks were at the start, and partners learn from themselves alone."""
    attack = RSFGSM(epsilon=reference.EPSILON)
    networks = make("ab")
    start, ours = copies(make, networks), copies(make, networks)
    copied = copies(make, networks) if scheme == "sparring" else {}
    partners = {f"sparring_{name}": copied[name] for name in copied}
    trainer = CoTraining(networks, scheme, source_weights=weights, seed=5)
    trainer.compile(keras.optimizers.SGD(RATE))
    names = [*(partners or "ab"), "before_b", "before_a"]
    everything = {**ours, **partners}
    order_of_all = [*everything, "before_b", "before_a"]
    case = Case([], attack)
    for count in range(2):
        crafters = {**everything, "before_a": start["a"], "before_b": start["b"]}
        fold_in = tf.random.experimental.stateless_fold_in
        numbers = fold_in([5, 0], tf.constant(count, tf.int64))
        adversarial = {
            name: attack(crafters[name], images, labels, seed=fold_in(numbers, order_of_all.index(name)))
            for name in partners
        }
        for name in "ab":
            shares = [3.0 if weights and each == f"before_{name}" else 1.0 for each in names]
            makers, adversarial[name] = by_image(
                names, attack, crafters, images, labels, count, 5, order_of_all, shares
            )
            assert set(makers) == set(names), "each has its share of 12 images"
        trainer.reset_metrics()
        reported = trainer.train_on_batch(images, labels, return_dict=True)
        learnt = {
            name: reference._learn(case, everything[name], None, images, labels, [adversarial[name]], [], [1])
            for name in everything
        }
        for gradients, _ in learnt.values():
            for variable, gradient in gradients:
                variable.assign_sub(RATE * gradient)
        assert reported["loss"] == pytest.approx(sum(float(learnt[name][1]["loss"]) for name in "ab"), rel=1e-4)
        for name in partners:
            assert reported[f"{name}_loss"] == pytest.approx(float(learnt[name][1]["loss"]), rel=1e-4)
    for name, network in everything.items():
        trained = {**trainer.networks, **trainer.sparring}[name]
        assert_close(trained.weights, network.weights, 2 * TOLERANCE)
    for name in copied:
        with pytest.raises(AssertionError):
            assert_close(trainer.networks[name].weights, copied[name].weights, 100 * TOLERANCE)


def test_the_past_is_replayed_one_snapshot_after_the_other(make, images, labels):
    """Two snapshots, one after every other step: step s crafts with snapshot s % 2 of the partner."""
    networks = make("ab")
    ours = copies(make, networks)
    slots = [copies(make, networks), copies(make, networks)]
    trainer = CoTraining(networks, learns_from="past_others", attack=RANDOMISED, snapshots=2, snapshot_steps=2, seed=5)
    trainer.compile(keras.optimizers.SGD(RATE))
    fold_in = tf.random.experimental.stateless_fold_in
    for count in range(6):
        numbers = fold_in([5, 0], tf.constant(count, tf.int64))
        adversarial = {
            name: RANDOMISED(slots[count % 2][other], images, labels, seed=fold_in(numbers, 2 + "ba".index(other)))
            for name, other in ("ab", "ba")
        }
        trainer.train_on_batch(images, labels)
        for name in "ab":
            gradients, _ = reference._learn(
                Case([], RANDOMISED), ours[name], None, images, labels, [adversarial[name]], [], [1]
            )
            for variable, gradient in gradients:
                variable.assign_sub(RATE * gradient)
        if (count + 1) % 2 == 0:
            slots[(count + 1) // 2 % 2] = copies(make, ours)
    for name in "ab":
        assert_close(trainer.networks[name].weights, ours[name].weights, 6 * TOLERANCE)
