"""What every attack promises, whatever it does: each registered attack goes through it in each of its norms."""

from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import fields

import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import attacks
from tests.attacks.conftest import operations_that_run

# Enough for every part of an attack to run.
BUDGET = {"steps": 4, "neighbours": 2, "queries": 10, "targets": 2, "rounds": 3, "evaluations": 4, "starts": 3}


# What each of these runs is the code of another attack here, with other numbers: one norm is enough.
DEFAULTS_ONLY = {"step_ll", "bim", "iterative_ll", "rs_fgsm", "mi_fgsm"}


def _cases():
    for name, attack in attacks.Attack.members.items():
        defaults = {field.name: field.default for field in fields(attack)}
        budget = {option: least for option, least in BUDGET.items() if defaults.get(option)}
        for norm in attack.norms[: 1 if name in DEFAULTS_ONLY else None]:
            yield pytest.param(
                attacks.get(name, epsilon=3.0 if norm == "l0" else 0.1, norm=norm, **budget), id=f"{name}-{norm}"
            )


def _length(difference: np.ndarray, norm: str) -> np.ndarray:
    flat = difference.reshape(len(difference), -1)
    pixels = np.count_nonzero(np.abs(difference).max(-1), axis=(1, 2))
    return {"linf": np.abs(flat).max(1), "l2": np.linalg.norm(flat, axis=1), "l0": pixels}[norm]


every_attack = pytest.mark.parametrize("attack", list(_cases()))
with_own_code = [case for case in _cases() if case.values[0].name not in DEFAULTS_ONLY]


class Crafting:
    """Every attack on one network and one batch, run eagerly once and compiled once for all tests of this file.

    Attributes:
        network: Its own, so that a test may change its weights for a while.
        eager: Takes an attack to what its eager call gives, with seed 4.
        compiled: Takes an attack to its graph, for any number of images, any epsilon and any seed.
    """

    def __init__(self, network, images, labels):
        self.network = network
        self.eager = functools.cache(lambda attack: attack(network, images, labels, seed=4).numpy())
        self.compiled = functools.cache(self._compile)

    def _compile(self, attack):
        return tf.function(
            lambda images, labels, epsilon, seed: attack(self.network, images, labels, epsilon=epsilon, seed=seed),
            input_signature=[
                tf.TensorSpec([None, 8, 8, 3], tf.float32),
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec([], tf.float32),
                tf.TensorSpec([], tf.int32),
            ],
        )


def _network(dtype="float32"):
    """The least with a weight whose gradient has a name of its own, and with what training mode would change."""
    keras.utils.set_random_seed(1)
    convolution = keras.layers.Conv2D(4, 3, 2, activation="tanh", dtype=dtype)
    rest = [keras.layers.BatchNormalization(dtype=dtype), keras.layers.Dropout(0.5), keras.layers.Flatten()]
    network = keras.Sequential([keras.Input([8, 8, 3]), convolution, *rest, keras.layers.Dense(5, dtype=dtype)])
    convolution.kernel.assign(4 * convolution.kernel)
    rest[0].moving_mean.assign(np.linspace(-0.5, 0.5, 4))
    return network


@pytest.fixture(scope="module")
def crafting(images, labels):
    return Crafting(_network(), images, labels)


@pytest.fixture(scope="module")
def half_precision():
    return _network("mixed_float16")


@every_attack
def test_what_every_attack_promises(attack, crafting, images, labels, state_of):
    """Eagerly: inside bounds and ball, the network and the images untouched."""
    before, given = state_of(crafting.network), images.copy()
    adversarial = crafting.eager(attack)
    assert (adversarial.shape, adversarial.dtype) == (images.shape, np.float32)
    assert np.all((adversarial >= 0) & (adversarial <= 1))
    assert np.all(_length(adversarial - images, attack.norm) <= attack.epsilon + 1e-6)
    np.testing.assert_array_equal(images, given)
    for old, new in zip(before, state_of(crafting.network), strict=True):
        np.testing.assert_array_equal(old, new)


@every_attack
def test_the_same_promises_compiled(attack, crafting, images, labels, state_of):
    """In one graph: one image or seven, any epsilon, the same result each time, and no weight's gradient in it."""
    before = state_of(crafting.network)
    craft = crafting.compiled(attack)
    compiled = craft(images, labels, attack.epsilon, 4).numpy()
    # Another order of summation may turn the sign of a gradient that is all but zero; a search then goes elsewhere.
    assert np.mean(np.isclose(compiled, crafting.eager(attack), atol=1e-5)) > 0.95
    np.testing.assert_array_equal(compiled, craft(images, labels, attack.epsilon, 4))
    single = craft(images[:1], labels[:1], attack.epsilon, 4).numpy()
    assert _length(single - images[:1], attack.norm)[0] <= attack.epsilon + 1e-6
    np.testing.assert_allclose(craft(images, labels, 0.0, 4), images, atol=1e-7)
    assert "Conv2DBackpropFilter" not in operations_that_run(craft.get_concrete_function().graph)
    for old, new in zip(before, state_of(crafting.network), strict=True):
        np.testing.assert_array_equal(old, new)


@every_attack
def test_nothing_but_numbers_where_there_is_no_gradient(attack, crafting, images, labels):
    """Once because the logits are constant, and once because the softmax is saturated."""
    craft, kernel = crafting.compiled(attack), crafting.network.layers[-1].kernel
    weights = kernel.numpy().copy()
    try:
        for scale in (0.0, 1e6):
            kernel.assign(weights * scale)
            adversarial = craft(images, labels, attack.epsilon, 0).numpy()
            assert np.all(np.isfinite(adversarial))
            assert np.all(_length(adversarial - images, attack.norm) <= attack.epsilon + 1e-6)
    finally:
        kernel.assign(weights)


@pytest.mark.parametrize("attack", with_own_code)
def test_the_same_promises_in_half_precision(attack, half_precision, images, labels):
    """With a network whose layers compute in float16, where gradients underflow first."""
    adversarial = attack(half_precision, images, labels).numpy()
    assert adversarial.dtype == np.float32
    assert np.all(np.isfinite(adversarial) & (adversarial >= 0) & (adversarial <= 1))
    assert np.all(_length(adversarial - images, attack.norm) <= attack.epsilon + 1e-6)


DISTRIBUTED = """
import numpy as np, tensorflow as tf
first = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(first, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from satm_tf import attacks

keras.utils.set_random_seed(0)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
with strategy.scope():
    network = keras.Sequential([keras.Input([8, 8, 3]), keras.layers.Conv2D(4, 3, activation="tanh"),
                                keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(5)])
images = np.random.default_rng(0).random((8, 8, 8, 3)).astype("float32")
labels = (np.arange(8) % 5).astype("int32")
shared = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices((images, labels)).batch(8))
names = ["fgsm", "mi_fgsm", "deepfool", "pgd", "apgd", "square"]
budget = {"apgd": {"steps": 10}, "square": {"queries": 100}}
for name in names:
    attack = attacks.get(name, epsilon=0.1, **budget.get(name, {}))

    @tf.function
    def craft(images, labels):
        return strategy.run(lambda images, labels: attack(network, images, labels), (images, labels))

    (batch,) = shared
    adversarial = np.concatenate([part.numpy() for part in strategy.experimental_local_results(craft(*batch))])
    assert np.abs(adversarial - images).max() <= 0.1 + 1e-6 or attack.norm != "linf", name
    if name in names[:3]:  # the others draw random numbers, for four images here and for eight there
        alone = attack.compiled(network)(images, labels).numpy()
        assert np.mean(np.isclose(adversarial, alone, atol=1e-5)) > 0.99, name
try:
    craft(strategy.run(lambda x: 255 * x, (batch[0],)), batch[1])
except tf.errors.InvalidArgumentError as error:
    assert "Attacks take images in [0, 1]" in str(error)
else:
    raise AssertionError("two replicas take images outside [0, 1]")
print("two replicas crafted what one does")
"""


@pytest.mark.slow
def test_two_replicas_craft_what_one_does():
    """In a process of its own, because devices are set up once; a gradient that is all but zero may turn its sign."""
    run = subprocess.run([sys.executable, "-c", DISTRIBUTED], capture_output=True, text=True, timeout=300, check=False)
    assert "two replicas crafted what one does" in run.stdout, run.stderr[-3000:]


def test_what_is_proved_in_one_norm_has_no_code_of_its_own():
    for name in DEFAULTS_ONLY:
        assert "perturb" not in vars(attacks.Attack.members[name])
