"""A configuration in, a run folder out: fine-tune, co-train, evaluate, export."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf import attacks, data
from satm_tf.configurable import unknown_name
from satm_tf.evaluation.masking import EFFORT
from satm_tf.experiment.config import (
    Config,
    TrainingConfig,
    evaluation_attacks,
    make_attack,
    scheme_networks,
    stage_training,
)
from satm_tf.experiment.images import Sizes, load_data, look_at_data, make_batches
from satm_tf.experiment.outcome import conclude, load_network
from satm_tf.models import ImageClassifier, get_backbone
from satm_tf.models.weights import find_weights
from satm_tf.storage import check_claim, claim, lock, write_text
from satm_tf.training import (
    Checkpoint,
    ClassificationLoss,
    CoTraining,
    Pictures,
    Progress,
    Scheme,
    balanced_class_weights,
    devices_for,
    get_strategy,
    is_chief,
    resolve_precision,
    wait_for_all,
)

Networks = dict[str, ImageClassifier]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What every stage of a run needs."""

    config: Config
    folder: Path
    images: data.ImageData
    schemes: Mapping[str, Scheme]
    loss: ClassificationLoss
    strategy: tf.distribute.Strategy
    devices: Mapping[str, str]

    def device(self, name: str) -> Any:
        """Where a network is made."""
        return tf.device(self.devices[name]) if name in self.devices else contextlib.nullcontext()

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return is_chief(self.strategy)


def run(config: Config) -> pd.DataFrame:
    """Runs an experiment stage by stage; a stage that has finished is not run again, one that has not goes on.

    The run folder holds `config.yaml`, `environment.json`, `networks/<stage>/<name>.keras` with a record of the weights
    they started from, `metrics.csv` (a row per stage and epoch, written after each), `logs` for TensorBoard, with
    pictures of what each network trains on, `checkpoints/<stage>` while that stage runs, `results.csv` (a row per
    attack, source and target), `predictions.npz`, `checks.csv`, `report.html` with its figures, and `exports.json`.
    Whatever is written appears whole or not at all, and random numbers follow from the seed and the stage's name alone.
    So a run that was killed at any moment, and started again by the same command, ends as one that was not, on CPUs to
    the bit.

    Under the strategy "multi_worker" every worker runs this; the first one writes, evaluates and exports, and the run
    folder has to be on a file system that they share.

    Args:
        config: What to do.

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
    images = train(config)
    if images is None:
        return pd.DataFrame()
    folder = run_folder(config)
    with lock(folder):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return conclude(config, images, evaluation_attacks(config), folder)


def run_folder(config: Config) -> Path:
    """Where a run is kept."""
    return Path(config.run_dir or Path("runs") / config.name)


def all_stages(config: Config) -> list[str]:
    """The stages in which a configuration's networks are trained, each after all that it needs."""
    fine_tuned = [f"fine_tune/{name}" for name in (*config.networks, *config.holdouts)]
    return [*fine_tuned, *(f"co_train/{name}" for name in config.schemes)]


def needed_stages(config: Config, wanted: Collection[str]) -> list[str]:
    """Some stages and those that they start from or learn from, in the order of `all_stages`.

    Raises:
        ValueError: If there is no such stage.
    """
    known = all_stages(config)
    needed: set[str] = set()
    waiting = list(wanted)
    while waiting:
        stage = waiting.pop()
        if stage not in known:
            raise unknown_name("stage", stage, known)
        if stage not in needed:
            needed.add(stage)
            kind, name = stage.split("/", maxsplit=1)
            if kind == "co_train":
                waiting += [_start(config, name, network) for network in scheme_networks(config, name)]
                waiting += {place for place, _ in frozen_sources(config, name).values()}
    return [stage for stage in known if stage in needed]


def train(config: Config, stages: Collection[str] | None = None) -> data.ImageData | None:
    """Trains the networks of an experiment as `run` does, all or those of some stages, and stops there.

    Args:
        config: What to do. It is all of it that a run folder belongs to, so that other stages can follow later.
        stages: The stages to train, with all that they need; None for all.

    Returns:
        The images; None for a worker that does not write.

    Raises:
        ValueError: As `run` does, and if there is no such stage.
        FileNotFoundError: As `run` does.
        FloatingPointError: As `run` does.
        Interrupted: As `run` does.

    Example:
        >>> train(config, ["co_train/satm"])
    """
    strategy = get_strategy(config.strategy)  # Several workers have to find each other before TensorFlow does any work.
    training_attack = _check(config)
    chosen = all_stages(config) if stages is None else needed_stages(config, stages)
    names = (*config.networks, *config.holdouts)
    devices = devices_for(names) if config.strategy == "network_per_device" else {}
    folder = run_folder(config)
    with _one_after_the_other(strategy):
        images = load_data(config.data, folder, config.seed)
        loss = _loss(config, images)
        claim(folder, _described(config))
    schemes = {name: scheme.scheme(training_attack) for name, scheme in config.schemes.items()}
    job = _Run(config, folder, images, schemes, loss, strategy, devices)
    print(f"{config.name}, in {folder}: {len(images.train)} training, {len(images.validation)} validation and "
          f"{len(images.test)} test images of {images.num_classes} classes\n{images.account}")  # fmt: skip

    makers = {"fine_tune": _fine_tuning, "co_train": _co_training}
    with lock(folder) if job.writes else contextlib.nullcontext():
        for stage in chosen:
            kind, name = stage.split("/", maxsplit=1)
            _train(job, stage, functools.partial(makers[kind], job, name))
    return images if job.writes else None


def check(config: Config) -> tuple[data.ImageData, Sizes]:
    """Finds what would stop `run` before its first step, without writing or downloading anything.

    Whether the networks' weights fit them, and whether other workers can be reached, shows only when a run starts.

    Returns:
        The images and their numbers, as `look_at_data` gives them.

    Raises:
        ValueError: As `run` does.
        FileNotFoundError: As `run` does.

    Example:
        >>> images, sizes = check(config.from_arguments(["--config", "quickstart"]))
    """
    _check(config)
    if config.strategy != "multi_worker":  # which would wait for the others
        get_strategy(config.strategy)
    if config.strategy == "network_per_device":
        devices_for((*config.networks, *config.holdouts))
    for network in {**config.networks, **config.holdouts}.values():
        published = get_backbone(network.backbone).published
        if network.weights is not None and network.weights not in published:
            find_weights(network.backbone, network.weights, published)
    folder = run_folder(config)
    check_claim(folder, _described(config))
    images, sizes = look_at_data(config.data, folder, config.seed)
    _loss(config, images)
    return images, sizes


def _described(config: Config) -> dict[str, Any]:
    """What a run folder belongs to. One that was moved, or handed to somebody, is the same run."""
    described = dataclasses.asdict(config)
    del described["run_dir"]
    return described


def _check(config: Config) -> attacks.Attack:
    """Finds what is wrong with a configuration before any work starts; gives the attack in training."""
    if not config.networks or not config.schemes or not config.attack:
        raise ValueError(
            "A configuration needs networks, an attack and schemes; start from a preset with --config. "
            f"Received: networks={list(config.networks)}, attack={config.attack}, schemes={list(config.schemes)}"
        )
    common = set(config.networks) & set(config.holdouts)
    aliases = {f"frozen_{name}" for name in config.networks} & set(config.networks)
    if aliases:
        raise ValueError(
            f"{min(aliases)!r} is what schemes call another network once it is frozen; choose another name."
        )
    names = (*config.networks, *config.holdouts, *config.schemes)
    odd = [name for name in names if not name or set(name) & set("/\\.")]
    if common or odd or "holdout" in config.schemes:
        raise ValueError(
            "Names of networks and schemes must hold no dot or slash, a holdout must not be one of the networks, and "
            f"no scheme is called 'holdout'. Received: {sorted(common) or odd or ['holdout']}"
        )
    size = config.data.image_size
    for name, network in {**config.networks, **config.holdouts}.items():
        minimum = get_backbone(network.backbone).minimum_size
        if size < minimum:
            raise ValueError(
                f"Network {name!r} takes images of at least {minimum} x {minimum}. Received: data.image_size={size}"
            )
    training_attack = make_attack(config.attack)
    trained: list[str] = []
    for name, described in config.schemes.items():
        unknown = [each for each in described.networks or () if each not in config.networks]
        if unknown:
            raise unknown_name(f"network in schemes.{name}.networks", unknown[0], config.networks)
        for field, other in (("frozen_from", described.frozen_from), ("starts_from", described.starts_from)):
            if other is not None and other not in trained:
                raise ValueError(
                    f"schemes.{name}.{field} must be a scheme that is trained before it: "
                    f"{', '.join(trained) or 'there is none'}. Received: {other!r}"
                )
        if described.starts_from is not None:
            lacking = set(scheme_networks(config, name)) - set(scheme_networks(config, described.starts_from))
            if lacking:
                raise ValueError(
                    f"schemes.{name} starts from {described.starts_from!r}, which does not train all of its networks. "
                    f"Missing: {', '.join(sorted(lacking))}"
                )
        trained.append(name)
        frozen_sources(config, name)
    stranger = [name for name in config.checks.schemes or () if name not in config.schemes]
    if stranger:
        raise unknown_name("scheme in checks.schemes", stranger[0], config.schemes)
    if config.export.scheme is not None and config.export.scheme not in config.schemes:
        raise ValueError(
            f"export.scheme must be one of the schemes, {list(config.schemes)}. Received: {config.export.scheme!r}"
        )
    for option in config.checks.effort:
        if option not in EFFORT:
            raise unknown_name("option in checks.effort", option, EFFORT)
    trainings = {"fine_tune": config.fine_tune, "co_train": config.co_train}
    trainings |= {f"schemes.{name}": stage_training(config, f"co_train/{name}") for name in config.schemes}
    for stage, training in trainings.items():
        if training.epochs < 1 or training.batch_size < 1:
            raise ValueError(
                f"{stage} takes an epoch or more, in batches of an image or more. "
                f"Received: epochs={training.epochs}, batch_size={training.batch_size}"
            )
        _optimizer(training)
    evaluation_attacks(config)
    return training_attack


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
def precision(option: str) -> Iterator[None]:
    """Keras's number formats meanwhile, as the configuration names them."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(resolve_precision(option))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _one_after_the_other(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """The worker that writes goes first, the others find what it has written."""
    if not is_chief(strategy):
        wait_for_all(strategy)
    yield
    if is_chief(strategy):
        wait_for_all(strategy)


def _optimizer(training: TrainingConfig, steps: int = 1) -> keras.optimizers.Optimizer:
    rate: Any = training.learning_rate
    if training.decay == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    optimizer = keras.optimizers.get(training.optimizer)
    return type(optimizer)(learning_rate=rate, **training.optimizer_options)


def frozen_sources(config: Config, scheme: str) -> dict[str, tuple[str, str]]:
    """The networks that only craft for a scheme: by the name that it knows them by, their stage and their own name.

    Raises:
        ValueError: If the scheme learns from a network that there is not.
    """
    described = config.schemes[scheme]
    origin = described.frozen_from
    known = {
        f"frozen_{name}": (f"co_train/{origin}" if origin else f"fine_tune/{name}", name)
        for name in (scheme_networks(config, origin) if origin else config.networks)
    }
    sources = described.scheme(make_attack(config.attack)).sources(scheme_networks(config, scheme), known)
    return {name: place for name, place in known.items() if any(name in names for names in sources.values())}


def _train(job: _Run, stage: str, make: Callable[[], CoTraining]) -> None:
    final = job.folder / "networks" / stage
    if final.exists():
        if job.writes:
            print(f"{stage}: finished before")
        return
    began = time.monotonic()
    keras.utils.clear_session()
    keras.utils.set_random_seed(zlib.crc32(f"{job.config.seed}/{stage}".encode()))
    checkpoints = job.folder / "checkpoints" / stage
    with precision(job.config.precision):
        with job.strategy.scope():
            trainer = make()
        rows = _fit(job, trainer, stage, checkpoints)
    if job.writes:
        temporary = final.with_name(f".{final.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, network in trainer.networks.items():
            network.save(temporary / f"{name}.keras")
        initial = {name: network.initial_weights for name, network in trainer.networks.items()}
        write_text(temporary / "initial_weights.json", json.dumps(initial, indent=2))
        pd.DataFrame(rows).to_csv(temporary / "history.csv", index=False)
        temporary.rename(final)
        shutil.rmtree(checkpoints)
        print(f"{stage}: {len(rows)} epochs in {time.monotonic() - began:.0f} s")
        _warn_of_collapse(stage, trainer, rows)
    wait_for_all(job.strategy)


def _fine_tuning(job: _Run, name: str) -> CoTraining:
    network = {**job.config.networks, **job.config.holdouts}[name]
    size = job.config.data.image_size
    with job.device(name):
        made = ImageClassifier.from_backbone(
            network.backbone,
            num_classes=job.images.num_classes,
            image_shape=(size, size, 3),
            weights=network.weights,
            dropout=network.dropout,
            name=name,
        )
    return _trainer(job, {name: made}, f"fine_tune/{name}", learns_from="nobody")


def _co_training(job: _Run, name: str) -> CoTraining:
    scheme = job.schemes[name]
    networks = {
        network: _load(job, _start(job.config, name, network), network) for network in scheme_networks(job.config, name)
    }
    frozen = {alias: _load(job, *place) for alias, place in frozen_sources(job.config, name).items()}
    return _trainer(job, networks, f"co_train/{name}", scheme, frozen=frozen)


def _start(config: Config, scheme: str, network: str) -> str:
    """The stage whose weights a scheme begins with."""
    before = config.schemes[scheme].starts_from
    return f"co_train/{before}" if before else f"fine_tune/{network}"


def _trainer(job: _Run, networks: Networks, stage: str, scheme: Scheme | None = None, **options: Any) -> CoTraining:
    training = stage_training(job.config, stage)
    trainer = CoTraining(
        networks,
        scheme,
        loss=job.loss,
        ordered=job.images.ordered,
        devices={name: device for name, device in job.devices.items() if name in networks},
        seed=job.config.seed,
        **options,
    )
    trainer.compile(
        optimizer=_optimizer(training, training.epochs * max(1, len(job.images.train) // training.batch_size))
    )
    return trainer


def _load(job: _Run, stage: str, name: str) -> ImageClassifier:
    with job.device(name):
        return load_network(job.folder, stage, name)


def _fit(job: _Run, trainer: CoTraining, stage: str, checkpoints: Path) -> list[dict[str, float]]:
    """Trains to the end; gives a row for each epoch, those before an interruption too."""
    config, images = job.config, job.images
    training = stage_training(config, stage)
    rates = {name: f"val_{name}_accuracy" for name in trainer.networks}
    checkpoint = Checkpoint(checkpoints, every_seconds=training.checkpoint_seconds)
    callbacks: list[keras.callbacks.Callback] = []
    if training.patience is not None:
        callbacks.append(keras.callbacks.EarlyStopping(patience=training.patience, restore_best_weights=True))
    if job.writes:
        logs = job.folder / "logs" / stage
        callbacks += [
            Progress(stage, {"loss": "loss", "val_loss": "val_loss", **rates}),
            keras.callbacks.TensorBoard(logs, write_graph=False),
            Pictures(logs / "pictures", make_batches(images.validation, config).take(1)),
            keras.callbacks.LambdaCallback(
                # The checkpoint comes last, and has yet to take up this epoch.
                on_epoch_end=lambda epoch, logs: _write_metrics(
                    job, stage, [*checkpoint.rows, {"epoch": epoch, **logs}]
                )
            ),
        ]
    drop_remainder = len(images.train) >= training.batch_size
    options = {"batch_size": training.batch_size, "seed": config.seed, "drop_remainder": drop_remainder}
    trainer.fit(
        make_batches(images.train, config, shuffle=True, augmentation=config.data.augmentation, **options),
        validation_data=make_batches(images.validation, config),
        epochs=training.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, checkpoint],
    )
    if job.writes:
        _write_metrics(job, stage, checkpoint.rows)
    return checkpoint.rows


def _write_metrics(job: _Run, stage: str, rows: list[dict[str, float]]) -> None:
    """`metrics.csv`: the stages that have finished, and this one's epochs so far."""
    frames = []
    for each in all_stages(job.config):
        history = job.folder / "networks" / each / "history.csv"
        if each == stage:
            frames.append(pd.DataFrame(rows).assign(stage=stage))
        elif history.exists():
            frames.append(pd.read_csv(history).assign(stage=each))
    write_text(job.folder / "metrics.csv", pd.concat(frames).to_csv(index=False))


def _warn_of_collapse(stage: str, trainer: CoTraining, rows: list[dict[str, float]]) -> None:
    """Says so where a network has ended at, or below, what guessing one class would give."""
    chance = 1 / next(iter(trainer.networks.values())).num_classes
    for name in trainer.networks:
        rate = rows[-1].get(f"val_{name}_accuracy", 1.0)
        if rate <= 1.1 * chance:
            print(
                f"warning: {name} is no better than chance after {stage}, with a validation accuracy of "
                f"{rate:.1%}. It has not learnt, or has collapsed: a smaller learning rate, or weight of domain "
                "adaptation, may help."
            )
