"""The number format of a run: the one that it asks for or, with "auto", the one in which its networks train faster."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

import keras
import tensorflow as tf

from satm_tf.bars import say
from satm_tf.experiment.config import Config
from satm_tf.experiment.sections import NetworkConfig
from satm_tf.storage import read_json, write_json
from satm_tf.training import resolve_precision

# Half precision must be faster by this factor: it also rounds, and machines are noisy.
_FASTER = 1.1
# Of a batch that networks are timed on: 64 images of 64 x 64; a larger one takes longer and says no more.
_PIXELS = 64 * 64**2
# Rounds of steps, in which the formats alternate, so that both have their share of what else the machine does.
_ROUNDS = 5


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Sets Keras's dtype policy for the `with` block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def choose_precision(config: Config) -> str:
    """The dtype policy of a run.

    With "auto", on hardware that supports a half-precision format, each of the networks to defend takes a few training
    steps in that format and in float32. The one that is faster over all of them is printed with the measured figures.
    The choice is recorded in the run folder, so that a resumed run makes the same one, on another machine too.

    Args:
        config: The run's configuration. The run folder exists.

    Example:
        >>> choose_precision(config.from_arguments(["--config", "utkface_age", "--precision", "auto"]))
        precision: 101 images per second in float32, 76 in mixed_bfloat16: float32
        'float32'
    """
    policy = resolve_precision(config.precision)
    if config.precision != "auto":
        return policy
    record = config.folder.precision
    if record.exists():
        return str(read_json(record)["chosen"])
    # A model from a file keeps the format that it was saved in.
    networks = {name: described for name, described in config.networks.items() if described.model is None}
    chosen, speeds = "float32", {}
    if networks and policy != chosen:
        batch = max(1, min(config.co_train.batch_size, _PIXELS // config.data.image_size**2))
        speeds = _speeds(networks, config.data.image_size, batch, (chosen, policy))
        shown = f"{speeds[chosen]:.0f} images per second in {chosen}, {speeds[policy]:.0f} in {policy}"
        chosen = policy if speeds[policy] > _FASTER * speeds[chosen] else chosen
        say(f"precision: {shown}: {chosen}")
    write_json(record, {"chosen": chosen, "images_per_second": speeds})
    return chosen


def _speeds(
    networks: Mapping[str, NetworkConfig], size: int, batch: int, policies: tuple[str, ...]
) -> dict[str, float]:
    """Images per second in each format of a training step of all networks, one after the other."""
    seconds = dict.fromkeys(policies, 0.0)
    for described in networks.values():
        steps = {policy: training_step(described, size, batch, policy)[0] for policy in policies}
        times: dict[str, list[float]] = {policy: [] for policy in policies}
        for _ in range(_ROUNDS):
            for policy, step in steps.items():
                began = time.monotonic()
                step()
                times[policy].append(time.monotonic() - began)
        for policy in policies:
            seconds[policy] += min(times[policy])  # what else the machine does only adds
        keras.utils.clear_session()
    return {policy: batch / each for policy, each in seconds.items()}


def training_step(
    described: NetworkConfig, size: int, batch: int, policy: str, num_classes: int = 8
) -> tuple[Callable[[], None], int]:
    """A step of a network, without its published weights, on a batch of noise, traced; and its number of parameters."""
    with precision(policy):
        network = dataclasses.replace(described, weights=None).build(num_classes, size)
    images = tf.random.uniform([batch, *network.image_shape])

    @tf.function(autograph=False)
    def compiled(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(images, training=True) ** 2)
        return tape.gradient(loss, network.trainable_variables)

    def step() -> None:
        compiled(images)[-1].numpy()

    step()
    return step, network.count_params()
