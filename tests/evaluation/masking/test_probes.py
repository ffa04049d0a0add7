import json

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.attacks import FGSM
from satm_tf.evaluation import label_leaking, measure
from satm_tf.evaluation.masking import gradient_reaches, loss_surface, masking_checks, verdicts
from satm_tf.evaluation.masking.probes import Noise
from satm_tf.evaluation.masking.verdicts import CHECKS, Facts
from tests.evaluation.conftest import EPSILON, SIZE, Wrapped


def rounded(images):
    return tf.round(10 * images) / 10


def times_1000(logits):
    return 1000 * logits


@pytest.fixture(scope="module")
def planted(undefended):
    """The same undefended network behind what some have taken for a defence."""
    return {"rounded": Wrapped(undefended, images=rounded), "saturated": Wrapped(undefended, logits=times_1000)}


@pytest.fixture(scope="module")
def checks(planted, honest, undefended, unseen, quadrants):
    frame = masking_checks(
        {"honest": honest, **planted},
        dataset=quadrants,
        epsilon=EPSILON,
        undefended={"unseen": unseen},
        before={"honest": undefended},
        steps=10,
        queries=100,
    )
    return frame.set_index(["network", "check"])


def failing(checks, network):
    return set(checks.loc[network].query("verdict == 'masking detected'").index)


def figures(checks, network, check):
    return json.loads(checks.figures[(network, check)])


def test_every_network_goes_through_every_check(checks):
    assert list(checks.loc["honest"].index) == list(CHECKS)
    assert len(checks) == 3 * len(CHECKS)
    assert set(checks.verdict) == {verdicts.NOT_DETECTED, verdicts.DETECTED, verdicts.NOT_APPLICABLE}
    assert checks.explanation.str.endswith(".").all()


def test_nothing_is_detected_in_an_honest_network(checks):
    assert set(checks.loc["honest"].verdict) == {verdicts.NOT_DETECTED}, checks.loc["honest"].explanation.to_dict()
    # And it is robust, or passing would say little: undefended, it was more than ten points lower.
    assert figures(checks, "honest", "AutoAttack")["auto_attack"] > 0.6


def test_gradients_cut_off_by_rounding_are_found(checks):
    assert failing(checks, "rounded") == {"gradient", "black box against white box"}
    rest = checks.loc["rounded"].query("verdict == 'not applicable'")
    assert {"unbounded epsilon", "AutoAttack", "approximation ratio"} <= set(rest.index)
    assert rest.explanation.str.contains("No gradient reaches the images").all()


def test_gradients_lost_in_a_saturated_layer_are_found(checks):
    network = "saturated"
    assert failing(checks, network) == {
        "gradient",
        "black box against white box",
        "unbounded epsilon",
        "loss along the gradient",
        "approximation ratio",
        "strength of own examples",
        "AutoAttack",
    }
    assert figures(checks, network, "gradient")["zero_gradient"] == 1.0
    # It only looks robust: the very same examples that fool the network behind it fool it as well.
    black_box = figures(checks, network, "black box against white box")
    assert black_box["white_box"] == 1.0
    assert black_box["iterative from unseen"] < 0.8


class Colluding:
    """Adds to each class's logit `weight` times the brightness of that class's own pixel in the corner, less grey.

    Clean images are grey there. A network of weight -w, attacked, brightens the true class's pixel and darkens the
    others; one of weight +w reads the label from them, and the other way round.
    """

    num_classes = 4

    def __init__(self, network, weight):
        self.network, self.weight = network, weight

    def __call__(self, images, training=None):
        return self.network(images, training=False) + self.weight * (images[:, 0, :4, 2] - 0.5)


@pytest.fixture
def grey_corner(quadrants):
    mask = np.ones([SIZE, SIZE, 3], np.float32)
    mask[0, :4, 2] = 0
    # Harder images: where all are right there is nothing to leak.
    noise = lambda x: 0.8 * tf.random.stateless_normal(tf.shape(x), [0, 1])  # noqa: E731
    return quadrants.map(lambda x, y: (tf.clip_by_value((x + noise(x)) * mask + 0.5 * (1 - mask), 0, 1), y))


def test_a_pair_that_writes_the_label_for_each_other_is_found(undefended, unseen, grey_corner):
    networks = {"a": Colluding(undefended, -1000.0), "b": Colluding(unseen, 1000.0), "honest": undefended}
    attack = {"single step": FGSM(epsilon=EPSILON)}
    measured = measure(sources=networks, targets=networks, dataset=grey_corner, attacks=attack)

    def leaking(name):
        right = {other: measured.correct("single step", EPSILON, other, name) for other in networks}
        own = right.pop(name)
        facts = Facts(
            network=name,
            num_classes=4,
            clean=measured.correct("clean", 0.0, "", name),
            losses=None,
            single_step=own,
            iterative=own,
            unbounded=None,
            noise=own,
            square=own,
            auto_attack=None,
            transferred={("single step", other): each for other, each in right.items()},
        )
        return verdicts.label_leaking(facts)

    detected, honest = verdicts.DETECTED, verdicts.NOT_DETECTED
    assert {name: leaking(name)[0] for name in networks} == {"a": detected, "b": detected, "honest": honest}
    found = leaking("a")[1]
    assert found["adversarial"] > found["clean"] + 0.1
    leaks = label_leaking(measured).query("leaks")
    assert set(zip(leaks.source, leaks.target, strict=True)) == {("a", "b"), ("b", "a")}


def test_a_gradient_reaches_or_not(undefended, planted, quadrants):
    images = next(iter(quadrants))[0]
    assert gradient_reaches(undefended, images)
    assert gradient_reaches(planted["saturated"], images)
    assert not gradient_reaches(planted["rounded"], images)


def test_noise_is_as_large_as_epsilon_and_stays_what_fools(undefended, quadrants):
    images, labels = next(iter(quadrants))
    once = Noise(epsilon=0.05, draws=1)(undefended, images, labels)
    size = np.abs(once - images)
    inside = (images > 0.05) & (images < 0.95)
    np.testing.assert_allclose(size[inside], 0.05, atol=1e-6)
    right = [
        np.sum(np.argmax(undefended(Noise(epsilon=0.6, draws=draws)(undefended, images, labels)), -1) == labels)
        for draws in (1, 5, 20)
    ]
    assert right[0] > right[1] > right[2]


def test_the_surface_rises_along_the_gradient_and_lies_flat_without_one(undefended, planted, quadrants):
    images, labels = next(iter(quadrants))
    surface = loss_surface(undefended, images, labels, epsilon=EPSILON, points=5)
    grid = surface.pivot(index="along_gradient", columns="along_random", values="loss")
    assert grid.shape == (5, 5)
    expected = tf.keras.losses.sparse_categorical_crossentropy(labels, undefended(images), from_logits=True)
    assert grid.loc[0.0, 0.0] == pytest.approx(float(tf.reduce_mean(expected)), rel=1e-5)
    assert (np.diff(grid[0.0]) > 0).all(), "up the gradient"
    rise = grid.loc[EPSILON, 0.0] - grid.loc[0.0, 0.0]
    assert rise > 5 * abs(grid.loc[0.0, EPSILON] - grid.loc[0.0, 0.0]), "and hardly along random signs"
    shattered = loss_surface(planted["rounded"], images, labels, epsilon=EPSILON, points=3)
    assert shattered.groupby("along_random").loss.nunique().eq(1).all()


def test_finished_parts_are_not_measured_again(planted, unseen, quadrants, tmp_path):
    options = {"dataset": quadrants.take(1), "epsilon": EPSILON, "steps": 2, "queries": 5, "folder": tmp_path}
    # Without a gradient there is no AutoAttack to trace.
    checked = {"a": planted["rounded"]}
    first = masking_checks(checked, undefended={"b": unseen}, **options)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = masking_checks(checked, undefended={"b": unseen}, **options)
    assert first.equals(again)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


@pytest.mark.parametrize(
    ("options", "received"),
    [({"undefended": {"a": None}}, "'a'"), ({"before": {"c": None}}, "'c'"), ({"networks": {}}, "no network")],
)
def test_what_cannot_be_compared_is_refused(options, received, undefended, quadrants):
    with pytest.raises(ValueError, match=received):
        masking_checks(**{"networks": {"a": undefended}, "dataset": quadrants, "epsilon": 0.1, **options})
