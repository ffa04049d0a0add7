"""A run: its stages, then evaluation and exports; and a check beforehand of everything that would stop it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf import bars, data
from satm_tf.configurable import plural
from satm_tf.evaluation.report.illustrations import write_answers
from satm_tf.experiment import work
from satm_tf.experiment.config import Config, make_attack
from satm_tf.experiment.detecting import check_detector
from satm_tf.experiment.images import Sizes, divide, load_data, look_at_data, make_batches
from satm_tf.experiment.outcome import conclude
from satm_tf.experiment.precision import choose_precision
from satm_tf.experiment.run_folder import FINE_TUNE, Stage
from satm_tf.experiment.sections import AT_HAND
from satm_tf.experiment.stage import Job, train_stage
from satm_tf.models import get_backbone
from satm_tf.models.weights import find_weights
from satm_tf.storage import check_claim, claim, lock
from satm_tf.training import (
    ClassificationLoss,
    balanced_class_weights,
    devices_for,
    get_strategy,
    is_chief,
    wait_for_all,
)

_DRAWN = "These faces are drawn by a program. For your own images: --data.format FORMAT --data.root FOLDER"


def run(config: Config) -> pd.DataFrame:
    """Runs an experiment stage by stage; a finished stage is not run again, an unfinished one resumes.

    The run folder holds `config.yaml`, `environment.json`, `networks/<stage>/<name>.keras` with a record of the weights
    they started from, `metrics.csv` (a row per stage and epoch, written after each), `logs` for TensorBoard, with
    pictures of what each network trains on, `checkpoints/<stage>` while that stage runs, `results.csv` (a row per
    attack, source and target), `predictions.npz`, `checks.csv`, `report.html` with its figures, `exports.json`,
    `detectors`, `precision.json` and `before_defence.png`, a picture of what the attack does to the networks before any
    defence, written as soon as they are fine-tuned. All files are written atomically, and random numbers depend only on
    the seed and the stage's name. So a run that was killed at any moment and resumed with the same command has the same
    result as an uninterrupted one: on CPUs, weights and results are identical to the bit. The figures of the epochs in
    `metrics.csv` have differed by up to 5e-7 between runs with the same seed.

    With the strategy "multi_worker" every worker runs this; the first one writes, evaluates and exports, and the run
    folder must be on a shared file system.

    Args:
        config: The experiment.

    Returns:
        The frame of `results.csv`: the columns of `transfer_matrix`, with sources and targets named
        `<scheme>/<network>` or `holdout/<network>`, and `fold` and `scheme`, the target's. Empty for a worker that does
        not write.

    Raises:
        ValueError: If something in the configuration is wrong, or the run folder holds another configuration's run.
        FileNotFoundError: If the data is missing.
        FloatingPointError: If a loss is not a finite number.
        Interrupted: If SIGINT or SIGTERM was received while a stage trained; everything is saved.

    Example:
        >>> results = run(config.from_arguments(["--config", "quickstart"]))
    """
    if config.data.format == "synthetic_faces":
        print(_DRAWN, flush=True)
    job = _prepare(config)
    with _shown(job, work.parts(config, job.sizes)):
        _train(job, config.stages())
        if not job.writes:
            return pd.DataFrame()
        with lock(config.folder.path):
            shutil.rmtree(config.folder.unfinished, ignore_errors=True)
            return conclude(config, job.images)


def train(config: Config, stages: Collection[Stage] | None = None) -> data.ImageData | None:
    """Trains the networks of an experiment as `run` does, all or those of some stages, without evaluating them.

    Args:
        config: The experiment. The run folder belongs to all of it, so that other stages can follow later.
        stages: The stages to train, with those that they need; None for all.

    Returns:
        The images; None for a worker that does not write.

    Raises:
        ValueError: As `run` does, and if there is no such stage.
        FileNotFoundError: As `run` does.
        FloatingPointError: As `run` does.
        Interrupted: As `run` does.

    Example:
        >>> train(config, [Stage("co_train", "satm")])
    """
    chosen = config.stages() if stages is None else config.needed_stages(stages)
    job = _prepare(config)
    with _shown(job, work.count(config, chosen, [], job.sizes)):
        _train(job, chosen)
    return job.images if job.writes else None


def _prepare(config: Config) -> Job:
    """Checks everything that could stop the run, and returns what all stages need: images and devices."""
    strategy = get_strategy(config.strategy)  # Several workers must connect before TensorFlow does any work.
    _check_parts(config)
    devices = devices_for(tuple(config.all_networks)) if config.strategy == "network_per_device" else {}
    folder = config.folder
    with _one_after_the_other(strategy):
        images = load_data(config.data, folder, config.seed)
        withheld = divide(images, config.data.surrogate_share, config.seed)
        images = dataclasses.replace(images, train=withheld.defence)
        loss = _loss(config, images)
        claim(folder.path, _described(config))
        policy = choose_precision(config)
    print(f"{config.name}, in {folder}: {len(images.train):,} training, {len(images.validation):,} validation and "
          f"{plural(len(images.test), 'test image')} of {images.num_classes} classes\n{images.account}")  # fmt: skip
    return Job(config, images, withheld.surrogates, loss, strategy, devices, policy)


def _train(job: Job, stages: Collection[Stage]) -> None:
    with lock(job.folder.path) if job.writes else contextlib.nullcontext():
        for stage in stages:
            train_stage(job, stage)
            if job.writes and stage == Stage(FINE_TUNE, [*job.config.networks][-1]):
                _show_undefended(job)


def _show_undefended(job: Job) -> None:
    """Draws what the attack does to the fine-tuned networks, crafted on the first, before any of them is defended."""
    config, path = job.config, job.folder.before_defence
    if path.exists():
        return
    networks = {name: job.load(Stage(FINE_TUNE, name), name) for name in config.networks}
    source, attack = next(iter(networks)), make_attack(config.attack)
    write_answers(
        path,
        functools.partial(attack.compiled(networks[source]), seed=config.seed),
        dataset=make_batches(job.images.validation.limit(3, config.seed), config),
        targets=networks,
        class_names=job.images.class_names,
        title=f"Before any defence: {attack.name}, epsilon {attack.epsilon:g}, on {source}",
    )
    bars.say(f"written: {path}, adversarial images of {source} before any defence")


def _shown(job: Job, costs: Mapping[str, work.Cost]) -> contextlib.AbstractContextManager[Any]:
    """The progress bar of the whole run."""
    if not job.writes:
        return contextlib.nullcontext()
    return bars.whole({part: each.seconds for part, each in costs.items() if each.seconds}, work.finished(job.config))


def check(config: Config) -> tuple[data.ImageData, Sizes]:
    """Checks for anything that would stop `run` before its first step, without writing or downloading anything.

    It cannot check whether weights fit their networks, or whether other workers can be reached.

    Returns:
        The images and their numbers, as `look_at_data` gives them.

    Raises:
        ValueError: As `run` does.
        FileNotFoundError: As `run` does.

    Example:
        >>> images, sizes = check(config.from_arguments(["--config", "quickstart"]))
    """
    if config.strategy != "multi_worker":  # which would wait for the others
        get_strategy(config.strategy)
    if config.strategy == "network_per_device":
        devices_for(tuple(config.all_networks))
    _check_parts(config)
    surrogates = [network for group in config.surrogates.values() for network in (group.networks or {}).values()]
    for network in [*config.all_networks.values(), *surrogates]:
        if network.model is not None and not Path(network.model).is_file():
            raise FileNotFoundError(f"No network was found at this path. Received: {network.model}")
        published = get_backbone(network.backbone).published if network.backbone else {}
        if network.backbone and network.weights not in (None, AT_HAND, *published):
            find_weights(network.backbone, str(network.weights), published)
    check_claim(config.folder.path, _described(config))
    images, sizes = look_at_data(config.data, config.folder, config.seed)
    _loss(config, images)
    return images, sizes


def _described(config: Config) -> dict[str, Any]:
    """The description that a run folder is claimed for. A folder that was moved or copied is the same run."""
    described = dataclasses.asdict(config)
    del described["run_dir"]
    return described


def _check_parts(config: Config) -> None:
    """Finds an optimizer or a detector that cannot be made."""
    for stage in config.stages():
        training = config.training(stage)
        try:
            training.make_optimizer()
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Keras cannot make the optimizer of {stage} ({error}). "
                f"Received: {training.optimizer!r}, {training.optimizer_options}"
            ) from error
    scheme = config.export.scheme
    check_detector(config.export.detector, null_class=scheme is not None and config.scheme(scheme).null_share > 0)


def _loss(config: Config, images: data.ImageData) -> ClassificationLoss:
    weights: Any = config.loss.class_weights
    if weights == "balanced":
        weights = balanced_class_weights(np.bincount(images.train.labels, minlength=images.num_classes).tolist())
    if weights is not None and len(weights) != images.num_classes:
        raise ValueError(
            f"loss.class_weights must hold a weight for each of {images.num_classes} classes. Received: {weights}"
        )
    if config.loss.order_temperature is not None and not images.ordered:
        raise ValueError(
            "loss.order_temperature is for classes in a meaningful order (data.ordered). "
            f"Received: {config.loss.order_temperature} for {', '.join(images.class_names)}"
        )
    return ClassificationLoss(**{**vars(config.loss), "class_weights": weights})


@contextlib.contextmanager
def _one_after_the_other(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """The worker that writes goes first, and the others find its files."""
    if not is_chief(strategy):
        wait_for_all(strategy)
    yield
    if is_chief(strategy):
        wait_for_all(strategy)
