import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks
from satm_tf.serving import comparison


@pytest.fixture
def task(exported):
    """Images, and for each the class that the network gives it, so that it is right about all clean ones."""
    images = np.random.default_rng(0).uniform(0.2, 0.8, (24, 16, 16, 3)).astype(np.float32)
    return images, exported.probabilities(images).argmax(-1)


@pytest.fixture
def planted(exported, monkeypatch):
    """Converted networks that are functions of ours: as the original, blind to detail, and one that always says 0."""

    def exact(images):
        return exported.probabilities(images).astype(np.float32)

    def coarse(images):
        return exact(np.round(images * 2) / 2)

    def stuck(images):
        return np.tile(np.float32([1, 0, 0, 0]), (len(images), 1))

    monkeypatch.setattr(comparison, "load", {"exact": exact, "coarse": coarse, "stuck": stuck}.get)
    monkeypatch.setattr(comparison.Path, "stat", lambda path: type("Stat", (), {"st_size": 2_000_000}))


def test_rates_under_attack_of_original_and_converted(exported, task, planted):
    images, labels = task
    attack, query = attacks.FGSM(epsilon=0.05), attacks.SquareAttack(epsilon=0.2, queries=15)
    names = {"exact": "exact", "coarse": "coarse", "stuck": "stuck"}
    frame = comparison.compare(exported.network, names, images, labels, attack=attack, query_attack=query, batch_size=8)
    rates = frame.set_index(["format", "attack", "crafted_on"]).accuracy
    adversarial = attack.craft(exported.network, images, labels, batch_size=8)
    fooled = exported.probabilities(adversarial).argmax(-1)
    assert rates["original", "clean", ""] == 1.0
    assert rates["original", "fgsm", "original"] == (fooled == labels).mean() < 0.9
    assert rates["exact", "fgsm", "original"] == rates["original", "fgsm", "original"]
    assert rates["stuck", "clean", ""] == rates["stuck", "square", "itself"] == (labels == 0).mean()
    # Its own search fools the network that is as the original.
    assert rates["exact", "square", "itself"] < 1.0

    rows = frame.set_index(["format", "attack", "crafted_on"])
    assert rows.worse["stuck", "clean", ""]
    assert not rows.worse[["exact"]].any()
    assert rows.change["stuck", "clean", ""] == (labels == 0).mean() - 1
    assert rows.agreement["exact", "clean", ""] == rows.agreement["exact", "fgsm", "original"] == 1
    assert rows.agreement.isna().tolist() == (frame.crafted_on == "itself").tolist()
    assert set(rows.loc["exact"].megabytes) == {2.0}
    weights = sum(int(tf.size(weight)) for weight in exported.network.weights)
    assert rows.megabytes["original", "clean", ""] == 4 * weights / 1e6
    assert (frame.milliseconds > 0).all()
    assert (frame.low <= frame.accuracy).all()
    assert (frame.accuracy <= frame.high).all()


def test_worse_is_a_paired_judgement():
    """Of 100 images lost 10 and won 2: 8 > 1.96 sqrt(12 - 0.64) = 6.6. Lost 10 and won 5: 5 < 1.96 sqrt(14.75)."""
    before = np.zeros(100, bool)
    before[:50] = True
    for won, worse in ((2, True), (5, False)):
        after = before.copy()
        after[:10], after[50 : 50 + won] = False, True
        assert comparison._worse(before, after) == worse
    assert not comparison._worse(before, before)


def test_nothing_to_compare_on(exported):
    with pytest.raises(ValueError, match="Received: 0 images"):
        comparison.compare(exported.network, {}, np.zeros([0, 16, 16, 3]), [], attack=attacks.FGSM(epsilon=0.1))
