from __future__ import annotations

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks, models

FGSM = attacks.FGSM(epsilon=0.1)


def _with_softmax(network: keras.Model, layer: keras.layers.Layer) -> keras.Model:
    return keras.Sequential([keras.Input([8, 8, 3]), network, layer])


@pytest.mark.parametrize("layer", [keras.layers.Softmax(), keras.layers.Activation("softmax")])
def test_a_model_that_ends_in_a_softmax_is_refused_until_it_is_said(network, images, labels, layer):
    model = _with_softmax(network, layer)
    with pytest.raises(ValueError, match="FromProbabilities"):
        FGSM(model, images, labels)
    adversarial = FGSM(models.FromProbabilities(model), images, labels)
    # Through the logarithm of a softmax the gradient is the same but for rounding, which turns few signs.
    assert np.mean(np.isclose(adversarial, FGSM(network, images, labels), atol=1e-6)) > 0.99


class Softmax(keras.Model):
    """A subclassed model, whose layers do not tell that it gives probabilities; counts its eager calls."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner, self.eager_calls = inner, 0

    def call(self, images, training=False):
        self.eager_calls += tf.executing_eagerly()
        return keras.ops.softmax(self.inner(images, training=training))


ENTRIES = {
    "call": lambda attack, model, *batch: attack(model, *batch),
    "compiled": lambda attack, model, *batch: attack.compiled(model)(*batch),
    "craft": lambda attack, model, *batch: attack.craft(model, *batch),
    "outcome": lambda attack, model, *batch: attack.outcome(model, *batch),
    "traced": lambda attack, model, *batch: tf.function(lambda *batch: attack(model, *batch))(*batch),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())
def test_a_model_that_gives_probabilities_is_known_by_its_answers(network, images, labels, entry):
    model = Softmax(network)
    probabilities = functools.partial(model, training=False)
    sources = [model, lambda x, training=False: probabilities(x), attacks.InTurn([network, model])]
    every_kind = entry is ENTRIES["call"]
    for source in [*sources, attacks.Ensemble([model], fuse="losses")] if every_kind else [model]:
        with pytest.raises(ValueError, match=r"returns probabilities. Wrap it: satm_tf.models.FromProbabilities"):
            entry(FGSM, source, images, labels)
    entry(FGSM, models.FromProbabilities(model), images, labels)
    model.gives_logits = True
    entry(FGSM, model, images, labels)


def test_a_half_precision_softmax_is_known_as_well(make_network, images, labels):
    half = make_network(1, dtype="mixed_bfloat16")
    with pytest.raises(ValueError, match="returns probabilities"):
        FGSM(lambda x, training=False: tf.nn.softmax(tf.cast(half(x), tf.bfloat16)), images, labels)


def test_a_network_is_probed_once_and_never_by_a_traced_step(network, images, labels):
    """Answers that are positive but add up to something else are logits."""

    class Twice(Softmax):
        def call(self, images, training=False):
            return 2 * super().call(images, training=training)

    model = Twice(network)
    crafts = [FGSM.compiled(model), tf.function(lambda images: FGSM(model, images, labels))]
    for _ in range(2):
        crafts[0](images, labels)
        crafts[1](images)
    assert model.eager_calls == 1


def test_a_network_that_cannot_take_the_probe_is_attacked_all_the_same(network, images, labels):
    def of_seven(x, training=False):
        return network(tf.ensure_shape(x, [7, 8, 8, 3]), training=training)

    np.testing.assert_array_equal(FGSM(of_seven, images, labels), FGSM(network, images, labels))


def test_a_callable_without_a_hash_is_a_model_too(network, images, labels):
    @dataclasses.dataclass
    class Scaled:
        factor: float = 1.0

        def __call__(self, x, training=False):
            return self.factor * network(x, training=training)

    with pytest.raises(TypeError, match="unhashable"):
        hash(Scaled())
    np.testing.assert_array_equal(FGSM(Scaled(), images, labels), FGSM(network, images, labels))


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "deepfool", "cw_l2", "cw_linf"])
def test_a_model_without_a_gradient_is_named(name, images, labels):
    def rounded(images, training=False):
        return tf.reduce_sum(tf.cast(tf.cast(images * 255, tf.int32), tf.float32), [1, 2]) @ tf.ones([3, 5])

    with pytest.raises(ValueError, match="No gradient reaches the images"):
        attacks.get(name, epsilon=0.1, **({"norm": "l2"} if name in ("deepfool", "cw_l2") else {}))(
            rounded, images, labels
        )


def test_any_callable_that_takes_training_is_a_model(network, images, labels):
    seen = []

    def call(images, training):
        seen.append(training)
        return network(images, training=training)

    np.testing.assert_array_equal(FGSM(call, images, labels), FGSM(network, images, labels))
    assert seen == [False, False], "one probe with noise, and one gradient"


@pytest.fixture(scope="module")
def networks(make_network):
    return [make_network(seed) for seed in (1, 2, 3)]


def _gradient(loss, images):
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        value = loss(images)
    return tape.gradient(value, images).numpy()


@pytest.mark.parametrize("fuse", ["logits", "probabilities", "losses"])
def test_an_ensemble_averages_what_it_says(networks, images, labels, fuse):
    rows = np.arange(7)

    def loss(x):
        logits = [network(x, training=False) for network in networks]
        if fuse == "logits":
            return -tf.reduce_sum(tf.gather_nd(tf.nn.log_softmax(sum(logits) / 3), np.stack([rows, labels], 1)))
        own = [tf.gather_nd(tf.nn.softmax(z), np.stack([rows, labels], 1)) for z in logits]
        if fuse == "probabilities":
            return -tf.reduce_sum(tf.math.log(sum(own) / 3))
        return -tf.reduce_sum(sum(tf.math.log(p) for p in own)) / 3

    expected = np.clip(images + 0.1 * np.sign(_gradient(loss, images)), 0, 1)
    ensemble = attacks.Ensemble(networks, fuse=fuse)
    assert np.mean(np.isclose(FGSM(ensemble, images, labels), expected, atol=1e-6)) > 0.99
    assert attacks.MIFGSM(epsilon=0.1)(ensemble, images, labels).shape == images.shape
    assert attacks.FGSM(epsilon=0.1, label_source="least_likely").outcome(ensemble, images, labels).success.shape == [7]


def test_an_ensemble_of_one_is_the_network(network, images, labels):
    for fuse in ("logits", "probabilities", "losses"):
        crafted = FGSM(attacks.Ensemble([network], fuse=fuse), images, labels)
        assert np.mean(np.isclose(crafted, FGSM(network, images, labels), atol=1e-6)) > 0.99


def test_networks_in_turn_are_used_one_a_step(networks, images, labels):
    x = images
    for step in range(5):
        # One step of one network from where the last one ended, kept in the ball of the first image.
        x = attacks.FGSM(epsilon=0.03)(networks[step % 3], x, labels)
        x = np.clip(x, images - 0.1, images + 0.1)
    attack = attacks.BIM(epsilon=0.1, steps=5, step_size=0.03)
    for crafted in (
        attack(attacks.InTurn(networks), images, labels),
        attack.compiled(attacks.InTurn(networks))(images, labels),
    ):
        assert np.mean(np.isclose(crafted, x, atol=1e-5)) > 0.98


def test_an_ensemble_needs_networks_and_a_known_fusion(network):
    with pytest.raises(ValueError, match="at least one network"):
        attacks.Ensemble([])
    with pytest.raises(ValueError, match="at least one network"):
        attacks.InTurn([])
    with pytest.raises(ValueError, match=r"Unknown fusion. Did you mean 'logits'"):
        attacks.Ensemble([network], fuse="logit")
