"""Training on several devices: of one machine, of several, or one for each network."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from satm_tf.errors import unknown_name

if TYPE_CHECKING:
    from satm_tf.training.checkpoint import Position

STRATEGIES = ("none", "mirrored", "multi_worker", "network_per_device")


def get_strategy(name: str) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy of that name, to be made before anything else of TensorFlow.

    Args:
        name: "none" and "network_per_device" (TensorFlow's default strategy, one replica), "mirrored" (all GPUs of this
            machine, or all logical CPUs if it has none), "multi_worker" (all machines that the environment variable
            TF_CONFIG names, each started with the same command).

    Raises:
        ValueError: If the name is unknown, or TF_CONFIG is missing or names no other machine.

    Example:
        >>> with get_strategy("mirrored").scope():
        ...     trainer = CoTraining(make_networks(), "satm")
        ...     trainer.compile("adam")
    """
    if name not in STRATEGIES:
        raise unknown_name("strategy", name, STRATEGIES)
    if name == "mirrored":
        devices = [device.name for device in _devices()]
        # The CPUs of one process have no collectives to speak of.
        on_cpu = not tf.config.list_logical_devices("GPU")
        return tf.distribute.MirroredStrategy(
            devices, cross_device_ops=tf.distribute.ReductionToOneDevice() if on_cpu else None
        )
    if name == "multi_worker":
        _check_cluster()
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def devices_for(networks: Sequence[str]) -> dict[str, str]:
    """A device for each network, in turn: the GPUs of this machine, or its logical CPUs if it has none.

    Raises:
        ValueError: If there are fewer than two.

    Example:
        >>> devices = devices_for(["a", "b"])
        >>> with tf.device(devices["a"]):
        ...     a = ImageClassifier.from_backbone("compact_vgg", num_classes=8)
        >>> CoTraining({"a": a, "b": b}, devices=devices)
    """
    devices = [device.name for device in _devices()]
    if len(devices) < 2:
        raise ValueError(f"A device for each network needs at least two devices. Received: {devices}")
    return {name: devices[index % len(devices)] for index, name in enumerate(networks)}


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes: the only one, or the first worker."""
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or resolver is None:
        return True
    if "chief" in resolver.cluster_spec().jobs:
        return bool(resolver.task_type == "chief")
    return bool(resolver.task_id == 0)


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns once every worker has called this; at once where there is only one."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        here = strategy.run(
            tf.function(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.constant(1.0)))
        )
        strategy.experimental_local_results(here)[0].numpy()


class MultiWorkerFit(keras.Model):
    """What Keras 3's `fit` lacks for `MultiWorkerMirroredStrategy`, and for data that begins in the middle.

    Keras reduces a distributed batch eagerly to build a model, which fails, and reduces logs over an axis that scalars
    lack. A model that is built beforehand needs the first not at all; for the second the metrics are synchronised
    already, and any replica's will do.
    """

    train_function: Any
    test_function: Any

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing is left to build."""

    def distributed(self, dataset: Any, position: Position) -> Any:
        """The part of the training data that this process reads, from a position on.

        Raises:
            ValueError: If the data cannot begin there, or cannot be shared out.
        """
        movable = hasattr(dataset, "from_position")
        if position.step + position.epoch and not movable:
            raise ValueError(
                "Training can go on only with data that can begin in the middle, such as that of satm_tf.data.batches. "
                f"Received: {type(dataset).__name__}"
            )

        def begin(context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
            begun = dataset.from_position(position.epoch, position.step, context)
            # Keras counts the steps of every epoch by the first, and `train_function` leaves out those done before.
            return begun.apply(tf.data.experimental.assert_cardinality(len(dataset))) if position.step else begun

        if not self._several_workers():
            return begin() if position.step + position.epoch else dataset
        if not movable:
            raise ValueError(
                "Several workers share out data that each of them can read in part, such as that of "
                f"satm_tf.data.batches. Received: {type(dataset).__name__}"
            )
        return self.distribute_strategy.distribute_datasets_from_function(begin)

    def whole(self, dataset: Any) -> Any:
        """Validation data, of which each worker reads all: it is small, and the mean over the workers is the same."""
        if dataset is None or not self._several_workers():
            return dataset
        return self.distribute_strategy.distribute_datasets_from_function(lambda context: dataset)

    def make_train_function(self, force: bool = False) -> None:
        if not self._several_workers():
            return super().make_train_function(force)
        if self.train_function is None or force:
            self.train_function = self._on_all_workers(self.train_step)

    def make_test_function(self, force: bool = False) -> None:
        if not self._several_workers():
            return super().make_test_function(force)
        if self.test_function is None or force:
            self.test_function = self._on_all_workers(self.test_step)

    def _on_all_workers(self, step: Any) -> Any:
        strategy = self.distribute_strategy

        @tf.function
        def run(iterator: Any) -> Any:
            logs = strategy.run(step, args=(next(iterator),))
            return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], logs)

        return run

    def _several_workers(self) -> bool:
        return isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _devices() -> list[tf.config.LogicalDevice]:
    return tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")


def _check_cluster() -> None:
    hint = 'such as {"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
    text = os.environ.get("TF_CONFIG", "")
    try:
        cluster = json.loads(text)["cluster"]
        workers = [address for job in ("chief", "worker") for address in cluster.get(job, [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        workers = []
    if not workers:
        raise ValueError(f"Strategy 'multi_worker' needs TF_CONFIG in the environment, {hint}. Received: {text!r}")
