"""An optimizer for each network, against a Keras optimizer of its own; and one learning rate for all."""

import itertools

import keras
import numpy as np
import pytest

from satm_tf import CoTraining
from satm_tf.attacks import FGSM

ATTACK = FGSM(epsilon=0.05)


@pytest.fixture
def networks(make_network):
    return {"a": make_network("a"), "b": make_network("b", width=4)}


def learn_cleanly(networks, optimizer, **options):
    """A trainer whose networks learn from nobody, so that plain `fit` is the reference."""
    trainer = CoTraining(networks, "undefended")
    trainer.compile(optimizer, **options)
    return trainer


def plain(make_network, network, width, optimizer):
    """The same network to be trained by Keras; so few steps are faster without a graph."""
    other = make_network("plain", width=width)
    other.set_weights(network.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    other.compile(optimizer, loss=loss, run_eagerly=True)
    return other


def assert_like_keras(networks, references, tolerance=2e-6):
    for network, reference in zip(networks.values(), references, strict=True):
        for ours, expected in zip(network.weights, reference.weights, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=ours.path)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.SGD(0.5, momentum=0.9, clipnorm=0.05),
        lambda: keras.optimizers.SGD(0.5, global_clipnorm=0.05),
        lambda: keras.optimizers.SGD(0.5, clipvalue=0.01, weight_decay=0.1),
        lambda: keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.6),
        lambda: keras.optimizers.SGD(0.5, gradient_accumulation_steps=2),
        lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.05, 1, 0.5)),
    ],
    ids=["clipnorm", "global_clipnorm", "clipvalue", "ema", "accumulation", "schedule"],
)
def test_each_network_is_as_with_an_optimizer_of_its_own(make_network, networks, images, labels, make_optimizer):
    references = [
        plain(make_network, network, width, make_optimizer())
        for network, width in zip(networks.values(), (6, 4), strict=True)
    ]
    fit = {"batch_size": 3, "epochs": 1, "shuffle": False, "verbose": 0}
    learn_cleanly(networks, make_optimizer()).fit(images, labels, **fit)
    before = [[np.array(v) for v in reference.weights] for reference in references]
    for reference in references:
        reference.fit(images, labels, **fit)
    assert_like_keras(networks, references)
    for old, reference in zip(before, references, strict=True):
        assert max(np.abs(o - np.array(v)).max() for o, v in zip(old, reference.weights, strict=True)) > 2e-4


def test_a_learning_rate_callback_reaches_every_network_whose_optimizers_hold_all_state(networks, images, labels):
    optimizer, kernels = keras.optimizers.Adam(0.1), []
    trainer = learn_cleanly(networks, optimizer)
    take = lambda *_: kernels.append([each.trainable_variables[0].numpy() for each in networks.values()])  # noqa: E731
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: [0.1, 0.0, 0.2][epoch]),
        keras.callbacks.LambdaCallback(on_epoch_begin=take, on_train_end=take),
    ]
    trainer.fit(images, labels, batch_size=12, epochs=3, verbose=0, callbacks=callbacks)
    for network in range(2):
        lengths = [np.abs(new[network] - old[network]).max() for old, new in itertools.pairwise(kernels)]
        assert lengths[1] == 0.0
        assert min(lengths[0], lengths[2]) > 1e-4
    assert float(trainer.optimizer.learning_rate) == pytest.approx(0.2)
    for each in trainer.optimizers.values():
        assert float(each.optimizer.learning_rate) == pytest.approx(0.2)
    assert (trainer.optimizer is optimizer, int(optimizer.iterations)) == (True, 3)
    assert len(optimizer.variables) == 2  # the count and the learning rate
    states = [{id(v) for v in each.optimizer.variables} for each in trainer.optimizers.values()]
    assert not states[0] & states[1]


def test_an_optimizer_that_scales_losses_is_refused(networks):
    with pytest.raises(ValueError, match="Pass the inner optimizer"):
        learn_cleanly(networks, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))


@pytest.fixture
def half():
    """Two float16 networks that learn from each other."""
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def half_networks(half, networks):
    return networks


def test_an_overflow_skips_the_step_of_its_network_alone(half_networks, images, labels, arrays):
    trainer = CoTraining(half_networks, learns_from="others", attack=ATTACK)
    trainer.compile(keras.optimizers.SGD(0.1))
    scales = {name: each.optimizer for name, each in trainer.optimizers.items()}
    assert all(isinstance(each, keras.optimizers.LossScaleOptimizer) for each in scales.values())
    scales["a"].dynamic_scale.assign(2.0**40)  # beyond what float16 can hold
    first = float(scales["b"].dynamic_scale)
    before = {name: [np.array(v) for v in network.weights] for name, network in half_networks.items()}
    trainer.train_on_batch(images, labels)
    changed = {
        name: [not np.array_equal(old, new) for old, new in zip(before[name], network.weights, strict=True)]
        for name, network in half_networks.items()
    }
    assert not any(changed["a"])
    assert all(changed["b"])
    assert (float(scales["a"].dynamic_scale), float(scales["b"].dynamic_scale)) == (2.0**39, first)
    assert (int(trainer.step), int(trainer.optimizer.iterations)) == (1, 1)
    assert (int(scales["a"].inner_optimizer.iterations), int(scales["b"].inner_optimizer.iterations)) == (0, 1)


def test_a_float32_network_beside_it_is_not_scaled(make_network, half, images, labels):
    keras.config.set_dtype_policy("float32")
    plain_network = make_network("plain")
    keras.config.set_dtype_policy("mixed_float16")
    networks = {"a": plain_network, "b": make_network("b", width=4)}
    trainer = CoTraining(networks, learns_from="others", attack=ATTACK)
    trainer.compile("sgd")
    scaled = [isinstance(each.optimizer, keras.optimizers.LossScaleOptimizer) for each in trainer.optimizers.values()]
    assert scaled == [False, True]


def test_the_scale_is_taken_out_again(make_network, half_networks, images, labels):
    """A step is the same at any scale that does not overflow: powers of two are exact but where float16 underflows."""
    results = []
    start = [network.get_weights() for network in half_networks.values()]
    for scale in (2.0**8, 2.0**10):
        for network, weights in zip(half_networks.values(), start, strict=True):
            network.set_weights(weights)
        trainer = CoTraining(half_networks, "undefended")
        trainer.compile(keras.optimizers.SGD(0.1))
        for each in trainer.optimizers.values():
            each.optimizer.dynamic_scale.assign(scale)
        trainer.train_on_batch(images, labels)
        results.append(np.concatenate([np.ravel(w) for n in half_networks.values() for w in n.get_weights()]))
    # What is below float16's smallest number at the smaller scale, 6e-8 / 256 times the learning rate, and sums of it.
    np.testing.assert_allclose(*results, rtol=0, atol=1e-6)
