import keras
import numpy as np
import pytest
import tensorflow as tf

from satm_tf import CoTraining
from satm_tf.attacks import RandomisedStep
from satm_tf.training import precision, resolve_precision


@pytest.fixture
def policy():
    """Sets a dtype policy for the test alone."""
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this machine one with these processor features, or GPUs of these compute capabilities."""

    def pretend(text="", capabilities=()):
        file = tmp_path / "cpuinfo"
        file.write_text(text)
        read = precision._processor_has
        monkeypatch.setattr(precision, "_processor_has", lambda flags: read(flags, file))
        gpus = [f"gpu:{index}" for index, _ in enumerate(capabilities)]
        details = [{} if each is None else {"compute_capability": each} for each in capabilities]
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: gpus if kind == "GPU" else [])
        monkeypatch.setattr(tf.config.experimental, "get_device_details", dict(zip(gpus, details, strict=True)).get)

    return pretend


@pytest.mark.parametrize("name", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_precision_by_name_is_itself_on_any_machine(machine, name):
    machine("flags : amx_bf16", [(9, 0)])
    assert resolve_precision(name) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n", "mixed_bfloat16"),
        ("flags\t\t: fpu avx512f avx512_bf16\n", "mixed_bfloat16"),
        ("Features\t: fp asimd bf16 i8mm\n", "mixed_bfloat16"),
        ("model name\t: one with amx_bf16 in its name\nflags\t\t: fpu avx2 avx512f\n", "float32"),
        ("flags\t\t: bf16x amx_bf16_not\n", "float32"),
        ("", "float32"),
    ],
)
def test_auto_goes_by_the_processors_features(machine, text, expected):
    machine(text)
    assert resolve_precision("auto") == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([(8, 0)], "mixed_bfloat16"),
        ([(9, 0), (8, 6)], "mixed_bfloat16"),
        ([(7, 5)], "mixed_float16"),
        ([(8, 0), (7, 0)], "mixed_float16"),
        ([(6, 1)], "float32"),
        ([(9, 0), None], "float32"),
    ],
)
def test_auto_goes_by_the_weakest_gpu_and_not_by_the_processor(machine, capabilities, expected):
    machine("flags : amx_bf16", capabilities)
    assert resolve_precision("auto") == expected


def test_a_system_that_does_not_say_has_no_features(tmp_path):
    assert precision._processor_has(("amx_bf16",), tmp_path / "nothing") is False


def test_an_unknown_precision_is_answered_by_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown precision. Did you mean 'mixed_bfloat16'"):
        resolve_precision("bfloat16")


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
def test_networks_of_half_precision_learn(policy, make_network, name):
    """Two classes told apart by brightness: from chance, log 2, to well below, as float32 networks do."""
    policy(name)
    networks = {"a": make_network("a", num_classes=2), "b": make_network("b", num_classes=2, batch_norm=True)}
    rng = np.random.default_rng(0)
    labels = np.arange(48, dtype="int32") % 2
    images = (rng.uniform(0.0, 0.6, (48, 16, 16, 3)) + 0.4 * labels[:, None, None, None]).astype("float32")
    trainer = CoTraining(networks, "satm", attack=RandomisedStep(epsilon=0.05))
    trainer.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    history = trainer.fit(images, labels, batch_size=16, epochs=6, verbose=0).history
    for network in "ab":
        for part in ("clean", "adversarial"):
            assert history[f"{network}_{part}_loss"][-1] < 0.35, (network, part)
    dtype = name.removeprefix("mixed_")
    assert {layer.compute_dtype for layer in networks["a"].backbone.layers} == {dtype}
    assert {weight.dtype for network in networks.values() for weight in network.weights} == {"float32"}
