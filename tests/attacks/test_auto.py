from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks


def _predicted(network, images):
    return network(images, training=False).numpy().argmax(1).astype("int32")


def _fooled(network, attack, images, classes):
    return _predicted(network, attack.compiled(network)(images, classes)) != classes


def test_checkpoints_are_the_papers():
    """Croce and Hein, section 3.1: p_1 = 0.22, the gaps shrink by 0.03 down to 0.06."""
    spans = attacks.APGD(epsilon=0.1, steps=100)._checkpoints()
    at = [step for step, span in enumerate(spans, 1) if span]
    assert at == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [spans[step - 1] for step in at] == [22, 19, 16, 13, 10, 7, 6, 6]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_finds_at_least_what_pgd_finds(make_network, norm):
    images = np.random.default_rng(8).uniform(0, 1, [40, 8, 8, 3]).astype("float32")
    network = make_network(4)
    classes = _predicted(network, images)
    # So that about half of the images are fooled: measured in this very test.
    epsilon = {"linf": 0.03, "l2": 0.3}[norm]
    shared = {"epsilon": epsilon, "norm": norm, "steps": 20}
    pgd = _fooled(network, attacks.PGD(**shared), images, classes).mean()
    assert 0.1 < pgd < 0.95
    for attack in (attacks.APGD(**shared), attacks.APGD(loss="dlr", **shared), attacks.APGDTargeted(**shared)):
        # Each image counts 2.5 %: at most one fewer than PGD's.
        assert _fooled(network, attack, images, classes).mean() >= pgd - 0.026, attack
    if norm == "linf":
        assert _fooled(network, attacks.AutoAttack(queries=50, **shared), images, classes).mean() >= pgd


def test_the_ratio_gets_through_where_the_softmax_is_saturated(make_network, images):
    network = make_network(1)
    last = network.layers[-1]
    last.kernel.assign(1e4 * last.kernel)
    classes = _predicted(network, images)
    shared = {"epsilon": 0.1, "steps": 20}
    assert _fooled(network, attacks.APGD(loss="dlr", **shared), images, classes).mean() > 0.9
    assert _fooled(network, attacks.APGD(**shared), images, classes).mean() < 0.5


def test_square_needs_no_gradient_and_no_more_than_the_logits(linear, grey):
    classes = _predicted(linear, grey)

    def without_gradient(x, training=False):
        return tf.stop_gradient(linear(x))

    kernel, logits = linear.layers[-1].kernel.numpy(), linear(grey).numpy()
    optimum = max(
        min((z[c] - z[k]) / np.abs(kernel[:, c] - kernel[:, k]).sum() for k in range(4) if k != c)
        for z, c in zip(logits, classes, strict=True)
    )
    attack = attacks.SquareAttack(epsilon=2.0 * optimum, queries=1000)
    adversarial = attack.compiled(without_gradient)(grey, classes)
    assert np.all(_predicted(linear, adversarial) != classes)
    # No search can succeed in less than the optimum.
    weak = attacks.SquareAttack(epsilon=0.5 * optimum, queries=100).compiled(without_gradient)(grey, classes)
    assert not np.all(_predicted(linear, weak) != classes)


def test_square_asks_no_more_than_its_queries(network, images, labels):
    asked = []

    def counting(x, training=False):
        asked.append(len(x))
        return tf.stop_gradient(network(x, training=training)) * 0 + tf.one_hot(labels, 5)

    counting.gives_logits = True
    attacks.SquareAttack(epsilon=0.1, queries=10)(counting, images, labels)
    # One more, to know which images need no attack.
    assert asked == [7] * 11


def test_square_queries_only_what_is_not_fooled_yet():
    asked = []

    def counting(x, training=False):
        asked.append(len(x))
        return tf.one_hot(tf.cast(tf.reduce_mean(x, (1, 2, 3)) > 0.5, tf.int32), 2)

    counting.gives_logits = True
    shades = np.repeat(np.float32([0.1, 0.1, 0.9])[:, None, None, None], 8, 1) * np.ones((3, 8, 8, 3), np.float32)
    attacks.SquareAttack(epsilon=0.1, queries=4)(counting, shades, np.int32([0, 0, 0]))
    assert asked == [3, 3, 2, 2, 2], "the clean images, all with stripes, and then the two that are right"


def test_apgd_stops_when_every_image_is_fooled(network, images):
    seen = []

    def counting(x, training=False):
        seen.append(1)
        return network(x, training=training)

    counting.gives_logits = True
    right = _predicted(network, images)
    attacks.APGD(epsilon=0.1, steps=20)(counting, images, (right + 1) % 5)
    assert len(seen) == 1, "every image is fooled at the start"
    del seen[:]
    attacks.APGD(epsilon=1e-6, steps=20)(counting, images, right)
    assert len(seen) == 21


def test_square_moves_toward_a_target(linear, grey):
    targets = (_predicted(linear, grey) + 1) % 4
    attack = attacks.SquareAttack(epsilon=0.3, queries=500, label_source="target")
    assert np.all(_predicted(linear, attack.compiled(linear)(grey, targets)) == targets)


def test_auto_attack_goes_on_with_what_still_holds(network, images):
    classes = _predicted(network, images)
    attack = attacks.AutoAttack(epsilon=0.04, steps=10, targets=2, queries=20)
    assert np.all(_fooled(network, attack, images, classes) >= _fooled(network, attack.parts()[0], images, classes))
    assert [part.name for part in attack.parts()] == ["apgd", "apgd_targeted", "fab_targeted", "square"]
    # What is wrong already is left alone.
    wrong = (classes + 1) % 5
    np.testing.assert_array_equal(attack(network, images, wrong), images)


def test_auto_attack_is_for_leaving_the_label():
    with pytest.raises(ValueError, match=r"label source 'label' or 'predicted' only.*'target'"):
        attacks.AutoAttack(epsilon=0.1, label_source="target")
