"""Training on several devices: of one machine, of several machines, or one for each network.

Two machines train together when the same command runs on both, each with its own "index", 0 or 1, in the environment
variable TF_CONFIG, and with a run folder on a shared file system, under the same path on both:

    export TF_CONFIG='{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'

and then, on both, `python -m satm_tf.train --strategy multi_worker ...`, or a program that creates the strategy before
it uses TensorFlow in any other way, and everything else in its scope:

    with get_strategy("multi_worker").scope():
        trainer = CoTraining(make_networks(), "satm")
        trainer.compile("adam")
    trainer.fit(batches(data.train, image_size=224, batch_size=64, shuffle=True), epochs=30,
                callbacks=[Checkpoint("/shared/run")])

The ports must be open between the machines, both need the same versions, data and code, and the batch size is the total
over all workers. Each worker waits until the others have connected. On a machine with several GPUs, start a worker for
each, with its own CUDA_VISIBLE_DEVICES and port. The first worker, or the "chief", writes the checkpoints. If a worker
dies, `fit` ends with a `ConnectionError` on the others: re-run the same command on all of them to resume from the last
checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import tensorflow as tf

from satm_tf.configurable import unknown_name
from satm_tf.training.private_keras import BuiltBeforehand, data_adapter

STRATEGIES = ("none", "mirrored", "multi_worker", "network_per_device")


class Position(NamedTuple):
    """The progress of a training: epochs done, steps done in the next one, and whether it was stopped early."""

    epoch: int = 0
    step: int = 0
    stopped: bool = False


def get_strategy(name: str) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy of that name; create it before you use TensorFlow in any other way.

    Args:
        name: "none" and "network_per_device" (TensorFlow's default strategy, one replica), "mirrored" (all GPUs of this
            machine, or all logical CPUs if it has none), "multi_worker" (all machines that the environment variable
            TF_CONFIG names, each started with the same command; see this module's description).

    Raises:
        ValueError: If the name is unknown; if TF_CONFIG is missing, names no other worker or leaves out this one; or if
            a worker has more than one GPU.

    Example:
        >>> with get_strategy("mirrored").scope():
        ...     trainer = CoTraining(make_networks(), "satm")
        ...     trainer.compile("adam")
    """
    if name not in STRATEGIES:
        raise unknown_name("strategy", name, STRATEGIES)
    if name == "mirrored":
        devices = [device.name for device in _devices()]
        # The CPUs of one process need no fast collectives.
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


def on_device(devices: Mapping[str, str], name: str) -> AbstractContextManager[Any]:
    """Places TensorFlow's operations on the named network's own device, if it has one."""
    # Not `tf.device(None)`, which would move the work of all replicas to the first device.
    return tf.device(devices[name]) if name in devices else contextlib.nullcontext()


def several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is one of several that train together."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes: the only one, or the first worker."""
    resolver = strategy.cluster_resolver
    if not several_workers(strategy) or resolver is None:
        return True
    if "chief" in resolver.cluster_spec().jobs:
        return bool(resolver.task_type == "chief")
    return bool(resolver.task_id == 0)


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when every worker has called this; immediately if there is only one.

    Raises:
        ConnectionError: If another worker has stopped.
    """
    greatest(strategy, [0])


def greatest(strategy: tf.distribute.Strategy, numbers: Sequence[int]) -> list[int]:
    """The maximum of each of these numbers over all workers, which must all call this together.

    If one worker decides something by its clock or on a signal, the others must do the same, or all wait forever.
    """
    if not several_workers(strategy):
        return list(numbers)
    with naming_lost_workers():
        return _greatest(strategy)(tf.constant([list(numbers)], tf.int32)).numpy().tolist()


@functools.cache
def _greatest(strategy: tf.distribute.Strategy) -> Any:
    # Traced once: `strategy.gather` traces at every call, and this is called after every step.
    def gather(own: tf.Tensor) -> tf.Tensor:
        # The collective needs a device, which only the copy has.
        return tf.reduce_max(tf.distribute.get_replica_context().all_gather(tf.identity(own), axis=0), axis=0)

    return tf.function(lambda own: strategy.run(gather, args=(own,)), autograph=False)


@contextlib.contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Turns the loss of another worker into a `ConnectionError` that says what to do."""
    try:
        yield
    except tf.errors.UnavailableError as error:
        raise ConnectionError(
            "Another worker has stopped, and training cannot continue without it. Re-run the same command on every "
            f"worker to resume from the last checkpoint. Received: {type(error).__name__}"
        ) from None


class DistributedFit(BuiltBeforehand):
    """What Keras 3's `fit` lacks for several replicas or workers, and for data that starts in the middle.

    For `MultiWorkerMirroredStrategy`, Keras reduces logs over an axis that scalars lack. Here, the logs of a step are
    this worker's, and those of an epoch cover all workers.
    """

    train_function: Any
    test_function: Any

    def check_compiled(self) -> None:
        """Refuses options that do not work on several replicas.

        Raises:
            ValueError: If `compile` received one.
        """
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return
        optimizer: Any = self.optimizer
        refusals = {
            "gradient_accumulation_steps": optimizer.gradient_accumulation_steps,
            "steps_per_execution above 1": self._several_workers() and self.steps_per_execution > 1,
            "an optimizer created outside the strategy's scope": not all(
                isinstance(variable.value, tf.distribute.DistributedValues) for variable in optimizer.variables
            ),
        }
        found = [what for what, refused in refusals.items() if refused]
        if found:
            raise ValueError(f"Training on several replicas works without {found[0]}. Received: {found[0]}")

    def distributed(self, dataset: Any, position: Position | None) -> Any:
        """The part of the training data that this process reads, from a position on; None keeps the data's position.

        Raises:
            ValueError: If the data cannot start there, or cannot be distributed.
        """
        movable = hasattr(dataset, "from_position")
        # Data that was iterated over is past its first epoch, so the start needs a position too.
        positioned = position is not None and movable
        epoch, step = (0, 0) if position is None else (position.epoch, position.step)
        if step + epoch and not movable:
            raise ValueError(
                "Resuming needs data that can start in the middle of an epoch, such as that of satm_tf.data.batches. "
                f"Received: {type(dataset).__name__}"
            )
        if self._several_workers() and not movable:
            raise ValueError(
                "Several workers need data that each of them can read in part, such as that of satm_tf.data.batches. "
                f"Received: {type(dataset).__name__}"
            )
        self._check_last_batch(dataset)

        def begin(context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
            if step >= len(dataset):
                # This epoch needs no more data, so reading starts with the next one.
                return dataset.from_position(epoch + 1, 0, context)
            begun = dataset.from_position(epoch, step, context)
            # Keras takes the first epoch's number of steps for all, and `train_function` skips those done before.
            return begun.apply(tf.data.experimental.assert_cardinality(len(dataset))) if step else begun

        if self._several_workers():
            return self._shared_out(begin)
        return begin() if positioned else dataset

    def distributed_validation(self, dataset: Any) -> Any:
        """Validation data, which each worker reads completely: it is small, and the mean over workers is the same."""
        if dataset is None:
            return None
        if self._several_workers():
            return self._shared_out(lambda context: dataset)
        self._check_last_batch(dataset)
        return dataset

    def _shared_out(self, begin: Any) -> Any:
        return data_adapter(self.distribute_strategy.distribute_datasets_from_function(begin))

    def _check_last_batch(self, dataset: Any) -> None:
        """Every replica needs an image: with oneDNN, TensorFlow's convolutions fail on an empty batch."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas == 1 or not hasattr(dataset, "from_position"):
            return
        labels = next(iter(dataset.from_position(0, len(dataset) - 1)))[1]
        if len(labels) < replicas:
            raise ValueError(
                "Every replica needs at least one image of every batch. Choose another batch size, or drop the "
                f"remainder. Received: {len(labels)} images in the last batch for {replicas} replicas"
            )

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

        def run(iterator: Any) -> Any:
            logs = strategy.run(step, args=(next(iterator),))
            return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], logs)

        return run if self.run_eagerly else tf.function(run, autograph=False)

    def _several_workers(self) -> bool:
        return several_workers(self.distribute_strategy)


def _devices() -> list[tf.config.LogicalDevice]:
    return tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")


def _check_cluster() -> None:
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) > 1:
        raise ValueError(
            "A worker of strategy 'multi_worker' must have one GPU. Start a worker for each GPU, with its own "
            f"CUDA_VISIBLE_DEVICES and port. Received: {[gpu.name for gpu in gpus]}"
        )
    hint = 'such as {"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        workers = {job: config["cluster"].get(job, []) for job in ("chief", "worker")}
        present = config["task"]["index"] in range(len(workers[config["task"]["type"]]))
    except (ValueError, KeyError, TypeError, AttributeError):
        present = False
    if not present or sum(map(len, workers.values())) < 2:
        raise ValueError(
            "Strategy 'multi_worker' needs TF_CONFIG in the environment, with at least two workers and this one's "
            f"index, {hint}. Received: {text!r}"
        )
