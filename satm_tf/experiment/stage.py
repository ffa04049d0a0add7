"""One stage of a run: trains the networks of a fine-tuning, or of a scheme, and saves them."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
import zlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf import bars, data, storage
from satm_tf.configurable import plural
from satm_tf.evaluation.names import NetworkName
from satm_tf.experiment.config import Config
from satm_tf.experiment.images import Sizes, make_batches
from satm_tf.experiment.precision import precision
from satm_tf.experiment.run_folder import FINE_TUNE, RunFolder, Stage
from satm_tf.metrics import at_chance
from satm_tf.models import ImageClassifier, get_backbone, restore_batch_norm
from satm_tf.training import (
    Checkpoint,
    ClassificationLoss,
    CoTraining,
    Pictures,
    Progress,
    is_chief,
    wait_for_all,
)

# The number of images on which folded batch normalisation is measured before fine-tuning: each contributes thousands of
# pixels to every layer.
_STATISTICS_IMAGES = 512


@dataclasses.dataclass(frozen=True)
class Job:
    """What every stage of a run needs.

    Attributes:
        config: The run's configuration.
        images: Its images.
        withheld: Training images that the defence never sees, for surrogates.
        loss: The classification loss.
        strategy: The devices.
        devices: Where each network is created, if it has its own device.
        policy: Keras's dtype policy for new networks.
    """

    config: Config
    images: data.ImageData
    withheld: data.Examples
    loss: ClassificationLoss
    strategy: tf.distribute.Strategy
    devices: Mapping[str, str]
    policy: str

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return self.config.folder

    @property
    def sizes(self) -> Sizes:
        """The numbers of images."""
        return Sizes(len(self.images.train), len(self.images.validation), len(self.images.test))

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return is_chief(self.strategy)

    def device(self, name: str) -> Any:
        """The device on which a network is created."""
        return tf.device(self.devices[name]) if name in self.devices else contextlib.nullcontext()

    def seed(self, stage: Stage) -> int:
        """The seed of a stage's random numbers, together with its name."""
        group = self.config.surrogates_of(stage)
        return self.config.seed if group is None or group.seed is None else group.seed

    def training_images(self, stage: Stage) -> data.Examples:
        """The images that a stage trains on."""
        group = self.config.surrogates_of(stage)
        return self.withheld if group is not None and group.images == "share" else self.images.train

    def load(self, stage: Stage, name: str) -> ImageClassifier:
        """A network after a stage."""
        with self.device(name):
            return self.folder.load(stage, name)


def train_stage(job: Job, stage: Stage) -> None:
    """Trains the networks of a stage and saves them, resuming from a checkpoint; a finished stage is unchanged.

    Args:
        job: The job that the run's stages share.
        stage: The stage. Those that it starts from must have finished.

    Raises:
        FloatingPointError: If a loss is not a finite number.
        Interrupted: If SIGINT or SIGTERM was received; everything is saved.
    """
    folder = job.folder
    final = folder.networks(stage)
    if final.exists():
        if job.writes:
            bars.say(f"{stage}: finished before")
        return
    bars.begin(str(stage))
    began = time.monotonic()
    keras.utils.clear_session()
    keras.utils.set_random_seed(zlib.crc32(f"{job.seed(stage)}/{stage}".encode()))
    with precision(job.policy):
        with job.strategy.scope():
            trainer = _fine_tuning(job, stage) if stage.kind == FINE_TUNE else _co_training(job, stage)
        rows = _fit(job, trainer, stage) if job.config.training(stage).epochs else []
    if job.writes:
        with storage.atomic_folder(final) as temporary:
            for name, network in trainer.networks.items():
                network.save(temporary / folder.network(stage, name).name)
            initial = {name: network.initial_weights for name, network in trainer.networks.items()}
            storage.write_json(temporary / folder.initial_weights(stage).name, initial)
            history = pd.DataFrame(rows, columns=None if rows else ["epoch"])
            history.to_csv(temporary / folder.history(stage).name, index=False)
        shutil.rmtree(folder.checkpoints(stage), ignore_errors=True)
        if rows:
            bars.say(f"{stage}: {plural(len(rows), 'epoch')} in {time.monotonic() - began:.0f} s")
            _warn_of_collapse(stage, trainer, rows)
        else:
            bars.say(f"{stage}: not trained")
    wait_for_all(job.strategy)


def _fine_tuning(job: Job, stage: Stage) -> CoTraining:
    name = NetworkName.parse(stage.name)
    described = job.config.described_network(name)
    with job.device(stage.name):
        size = job.config.data.image_size
        network = described.build(job.images.num_classes, size, name.network)
        if described.weights is not None and get_backbone(str(described.backbone)).folded:
            some = job.training_images(stage).limit(_STATISTICS_IMAGES, job.seed(stage))
            images = np.concatenate([images for images, _ in make_batches(some, job.config).as_numpy_iterator()])
            restore_batch_norm(network, images)
    received = network.image_shape, network.num_classes
    if received != ((size, size, 3), job.images.num_classes):
        raise ValueError(
            f"{described.described} must take images of {size} x {size} and distinguish {job.images.num_classes} "
            f"classes, as the data does. Received: images of shape {received[0]}, {received[1]} classes"
        )
    return _trainer(job, stage, {name.network: network}, learns_from="nobody")


def _co_training(job: Job, stage: Stage) -> CoTraining:
    config, scheme = job.config, stage.name
    described = config.scheme(scheme)

    def trained(start: Stage, name: str) -> ImageClassifier:
        network = job.load(start, name)
        with job.device(name):
            return network.with_null_class() if described.null_share else network

    networks = {name: trained(config.start(scheme, name), name) for name in config.networks_of(scheme)}
    frozen = {alias: job.load(*source) for alias, source in config.frozen_sources(scheme).items()}
    # Before the stage, if it trains the network itself.
    started = {name: config.start(scheme, name) for name in networks}
    named = config.sparring(scheme)
    sparring = named and {name: trained(started.get(name, Stage(FINE_TUNE, name)), name) for name in named}
    return _trainer(
        job,
        stage,
        networks,
        scheme=described,
        crafted_folder=job.folder.crafted,
        frozen=frozen,
        sparring=sparring,
    )


def _trainer(job: Job, stage: Stage, networks: dict[str, ImageClassifier], **options: Any) -> CoTraining:
    training = job.config.training(stage)
    trainer = CoTraining(
        networks,
        loss=job.loss,
        ordered=job.images.ordered,
        devices={name: device for name, device in job.devices.items() if name in networks},
        seed=job.seed(stage),
        **options,
    )
    steps = max(1, len(job.training_images(stage)) // training.batch_size)
    trainer.compile(optimizer=training.make_optimizer(max(1, training.epochs * steps)))
    return trainer


def _fit(job: Job, trainer: CoTraining, stage: Stage) -> list[dict[str, float]]:
    """Trains to the end; returns a row for each epoch, including those before an interruption."""
    config, images = job.config, job.images
    training = config.training(stage)
    figures = {
        "loss": "loss",
        "clean": [f"val_{name}_accuracy" for name in trainer.networks],
        "adv": [f"val_{name}_adversarial_accuracy" for name in trainer.networks],
    }
    checkpoint = Checkpoint(job.folder.checkpoints(stage), every_seconds=training.checkpoint_seconds)
    callbacks: list[keras.callbacks.Callback] = []
    if training.patience is not None:
        callbacks.append(keras.callbacks.EarlyStopping(patience=training.patience, restore_best_weights=True))
    if job.writes:
        logs = job.folder.logs(stage)
        callbacks += [
            Progress(str(stage), figures),
            keras.callbacks.TensorBoard(logs, write_graph=False),
            Pictures(logs / "pictures", make_batches(images.validation, config).take(1)),
            keras.callbacks.LambdaCallback(
                # The checkpoint comes last, and does not include this epoch yet.
                on_epoch_end=lambda epoch, logs: _write_metrics(
                    job, stage, [*checkpoint.rows, {"epoch": epoch, **logs}]
                )
            ),
        ]
    train = job.training_images(stage)
    drop_remainder = len(train) >= training.batch_size
    options = {"batch_size": training.batch_size, "seed": job.seed(stage), "drop_remainder": drop_remainder}
    if trainer.scheme.crafted_once and job.writes:
        print(f"{stage}: crafting the examples of its sources once, before the first step", flush=True)
    trainer.fit(
        make_batches(train, config, shuffle=True, augmentation=config.data.augmentation, **options),
        validation_data=make_batches(images.validation, config),
        epochs=training.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, checkpoint],
    )
    if job.writes:
        _write_metrics(job, stage, checkpoint.rows)
    return checkpoint.rows


def _write_metrics(job: Job, stage: Stage, rows: list[dict[str, float]]) -> None:
    """`metrics.csv`: the stages that have finished, and this one's epochs so far."""
    frames = []
    for each in job.config.stages():
        history = job.folder.history(each)
        if each == stage:
            frames.append(pd.DataFrame(rows).assign(stage=str(stage)))
        elif history.exists() and len(earlier := storage.read_csv(history)):
            frames.append(earlier.assign(stage=str(each)))
    storage.write_text(job.folder.metrics, pd.concat(frames).to_csv(index=False))


def _warn_of_collapse(stage: Stage, trainer: CoTraining, rows: list[dict[str, float]]) -> None:
    """Warns of a network that ends at or below the accuracy of guessing one class."""
    for name, network in trainer.networks.items():
        rate = rows[-1].get(f"val_{name}_accuracy", 1.0)
        if at_chance(rate, network.num_classes):
            bars.say(
                f"warning: {name} is no better than chance after {stage}, with a validation accuracy of "
                f"{rate:.1%}. It has not learnt, or has collapsed; try a smaller learning rate or weight of domain "
                "adaptation."
            )
