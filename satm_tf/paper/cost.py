"""What stages and measurements will take, said before they start."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from satm_tf.config import (
    Config,
    TrainingConfig,
    evaluation_attacks,
    make_attack,
    scheme_networks,
    stage_training,
)
from satm_tf.evaluation.predictions import CLEAN
from satm_tf.experiment import frozen_sources
from satm_tf.loading import load_data
from satm_tf.models import ImageClassifier
from satm_tf.paper.measuring import Cell

# Of a pass forward and back to the weights, by the usual count of multiplications: forward alone, and forward and back
# to the images.
_FORWARD, _CRAFT = 1 / 3, 2 / 3
# Tracing a stage's graphs, loading, saving and logging, in times of a network's first call.
_STAGE_OVERHEAD = 8.0
_SLOTS = {"sgd": 1, "adam": 2, "adamw": 2}
_FACE_BYTES = 4_000


class Cost(NamedTuple):
    """What one stage, or measuring, takes.

    Attributes:
        steps: Steps of training, or batches to measure.
        seconds: About how long, on this machine.
        bytes: What it leaves on disk.
        passing: What it needs there while it runs.
    """

    steps: int
    seconds: float
    bytes: float
    passing: float = 0.0


class Network(NamedTuple):
    """What one network takes: seconds of a pass forward and back for each image, of its first call; its weights."""

    seconds: float
    first: float
    weights: int


class Sizes(NamedTuple):
    """How many images there are in each split."""

    train: int
    validation: int
    test: int


def sizes(config: Config, folder: Path) -> Sizes:
    """The numbers of images; of synthetic faces without drawing them."""
    data = config.data
    if data.format == "synthetic_faces":
        whole = data.num_subjects * data.images_per_subject
        learnt = 4 * whole // 5
        kept = round(data.validation_share * learnt)
        return Sizes(learnt - kept, kept, whole - learnt)
    images = load_data(data, folder, config.seed)
    return Sizes(len(images.train), len(images.validation), len(images.test))


@functools.cache
def time_network(backbone: str, size: int, batch: int, num_classes: int = 8) -> Network:
    """Builds a network, without its published weights, and times it on one batch of noise, three times."""
    began = time.monotonic()
    network = ImageClassifier.from_backbone(backbone, num_classes=num_classes, image_shape=(size, size, 3))
    images = tf.random.uniform([batch, size, size, 3])

    @tf.function
    def step(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(images, training=True) ** 2)
        return tape.gradient(loss, network.trainable_variables)

    step(images)
    first = time.monotonic() - began
    times = []
    for _ in range(3):
        began = time.monotonic()
        step(images)[-1].numpy()
        times.append(time.monotonic() - began)
    weights = network.count_params()
    keras.utils.clear_session()
    return Network(float(np.median(times)) / batch, first, weights)


def estimate(config: Config, stages: Iterable[str], cells: Iterable[Cell], found: Sizes) -> dict[str, Cost]:
    """The cost of each stage, and of "measure".

    A network's pass forward and back is timed; an adversarial image is counted as such a pass of who learns from it
    and, for each gradient of the attack, two thirds of one of who crafts it; a prediction as a third.

    Args:
        config: The configuration.
        stages: The stages that are still to be trained.
        cells: The cells that are to be measured.
        found: The numbers of images.
    """
    networks = {**config.networks, **config.holdouts}
    batch = config.co_train.batch_size

    def timed(name: str) -> Network:
        return time_network(networks[name].backbone, config.data.image_size, batch)

    costs = {}
    for stage in stages:
        kind, name = stage.split("/")
        training = stage_training(config, stage)
        trained = [name] if kind == "fine_tune" else scheme_networks(config, name)
        clean = sum(timed(each).seconds for each in trained)
        learning = _adversarial(config, name, timed) if kind == "co_train" else 0.0
        seen = training.epochs * (found.train + 0.5 * found.validation)
        overhead = _STAGE_OVERHEAD * sum(timed(each).first for each in trained)
        size = 4.0 * sum(timed(each).weights for each in trained)
        costs[stage] = Cost(
            training.epochs * _steps(training, found.train),
            seen * (clean + learning) + overhead,
            size,
            2 * size * (1 + _SLOTS.get(training.optimizer, 2)),
        )
    attacks = evaluation_attacks(config)
    wanted = set(cells)
    crafted = {(cell.attack, cell.epsilon, cell.source) for cell in wanted if cell.attack != CLEAN}
    seconds = sum(
        _CRAFT * getattr(attacks[attack], "steps", 1) * timed(_network(s)).seconds for attack, _, s in crafted
    )
    seconds += sum(_FORWARD * timed(_network(cell.target)).seconds for cell in wanted)
    overhead = sum(timed(_network(cell.target)).first for cell in wanted) / 4
    blocks = len(crafted) * -(-found.test // 128)
    costs["measure"] = Cost(blocks, found.test * seconds + overhead, float(found.test * len(wanted)))
    return costs


def _adversarial(config: Config, scheme: str, timed: Callable[[str], Network]) -> float:
    """Seconds, for each clean image, of crafting adversarial ones and learning from them."""
    described = config.schemes[scheme].scheme(make_attack(config.attack))
    frozen = frozen_sources(config, scheme)
    learners = described.sources(scheme_networks(config, scheme), frozen)
    seconds = 0.0
    for learner, sources in learners.items():
        crafting = [
            _CRAFT
            * getattr(described.attack_on(source, learner, source not in frozen), "steps", 1)
            * timed(frozen[source][1] if source in frozen else source).seconds
            for source in sources
        ]
        share = 1.0 if described.all_sources or not sources else 1 / len(sources)
        seconds += share * (sum(crafting) + len(sources) * timed(learner).seconds)
    return seconds


def data_bytes(config: Config) -> float:
    """What drawing the images takes on disk."""
    drawn = config.data.format == "synthetic_faces"
    return float(_FACE_BYTES * config.data.num_subjects * config.data.images_per_subject) if drawn else 0.0


def _steps(training: TrainingConfig, images: int) -> int:
    return max(1, images // training.batch_size)


def _network(name: str) -> str:
    return name.split("/")[1]
