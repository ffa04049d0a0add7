import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks
from satm_tf.evaluation import compare_paired
from satm_tf.models.runtimes import RuntimeModel
from satm_tf.serving import comparison

from .conftest import SHAPE


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

    class Planted(RuntimeModel):
        def __init__(self, name):
            self.run = {"exact": exact, "coarse": coarse, "stuck": stuck}[name]
            self.image_shape = SHAPE

    monkeypatch.setattr(comparison, "RuntimeModel", Planted)
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
    # `compare_paired` has its own tests; worse means that its interval lies below 0.
    paired = compare_paired(np.ones(24, bool), labels == 0)
    assert rows.worse["stuck", "clean", ""] == (paired.high < 0)
    assert paired.high < 0
    assert rows.worse.dtype == bool
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


def test_nothing_to_compare_on(exported):
    with pytest.raises(ValueError, match="Received: 0 images"):
        comparison.compare(exported.network, {}, np.zeros([0, 16, 16, 3]), [], attack=attacks.FGSM(epsilon=0.1))
