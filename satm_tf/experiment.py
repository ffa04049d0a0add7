"""A configuration in, a run folder out: fine-tune, co-train, evaluate, export."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import pandas as pd
import tensorflow as tf
import yaml

import satm_tf
from satm_tf import attacks, data, serving
from satm_tf.config import Config, DataConfig, TrainingConfig
from satm_tf.evaluation import label_leaking, robustness_table, transfer_matrix
from satm_tf.models import ImageClassifier, get_backbone
from satm_tf.training import CoTraining, Progress, resolve_sources

Networks = dict[str, ImageClassifier]


def run(config: Config) -> pd.DataFrame:
    """Runs an experiment stage by stage; a stage that has finished is not run again.

    The run folder holds `config.yaml`, `environment.json`, `networks/<stage>/<name>.keras` with a record of the weights
    they started from, `metrics.csv` (a row per stage and epoch), `results.csv` (a row per attack, source and target)
    and `exports.json`. Whatever a stage writes appears whole or not at all, and its random numbers follow from the seed
    and the stage's name alone, so that a run that was interrupted between two stages ends as one that was not.

    Args:
        config: What to do.

    Returns:
        The frame of `results.csv`: the columns of `transfer_matrix`, with sources and targets named
        `<scheme>/<network>` or `holdout/<network>`, and `fold` and `scheme`, the target's.

    Raises:
        ValueError: If something in the configuration is wrong, or the run folder holds another configuration's run.
        FileNotFoundError: If the data is missing.
        FloatingPointError: If a loss is not a finite number.

    Example:
        >>> results = run(config.from_arguments(["--config", "quickstart"]))
    """
    training_attack, evaluation_attacks = _check(config)
    folder = Path(config.run_dir or Path("runs") / config.name)
    images = _load_data(config.data, folder, config.seed)
    _claim(folder, config)
    print(f"{config.name}, in {folder}: {len(images.train)} training, {len(images.validation)} validation and "
          f"{len(images.test)} test images of {images.num_classes} classes\n{images.account}")  # fmt: skip

    stages = {
        f"fine_tune/{name}": functools.partial(_fine_tune, config, name, images)
        for name in (*config.networks, *config.holdouts)
    } | {
        f"co_train/{scheme}": functools.partial(_co_train, config, scheme, images, training_attack, folder)
        for scheme in config.schemes
    }
    for stage, work in stages.items():
        _train(stage, work, folder, config.seed)
    histories = [pd.read_csv(folder / "networks" / stage / "history.csv").assign(stage=stage) for stage in stages]
    _write(folder / "metrics.csv", pd.concat(histories).to_csv(index=False))

    results = _evaluate(config, images, evaluation_attacks, folder)
    _print_tables(results, images.ordered, evaluation_attacks)
    _export(config, images.class_names, folder)
    return results


def _check(config: Config) -> tuple[attacks.Attack, dict[str, attacks.Attack]]:
    """Finds what is wrong with a configuration before any work starts; gives its attacks."""
    if not config.networks or not config.schemes or not config.attack:
        raise ValueError(
            "A configuration needs networks, an attack and schemes; start from a preset with --config. "
            f"Received: networks={list(config.networks)}, attack={config.attack}, schemes={list(config.schemes)}"
        )
    common = set(config.networks) & set(config.holdouts)
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
    for scheme in config.schemes.values():
        resolve_sources(scheme.learns_from, config.networks, _frozen(config.networks))
    if config.export.scheme is not None and config.export.scheme not in config.schemes:
        raise ValueError(
            f"export.scheme must be one of the schemes, {list(config.schemes)}. Received: {config.export.scheme!r}"
        )
    for training in (config.fine_tune, config.co_train):
        _optimizer(training)
    training_attack = _attack(config.attack)
    return training_attack, {
        name: _attack({"epsilon": training_attack.epsilon, **options})
        for name, options in config.evaluation_attacks.items()
    }


def _attack(options: Mapping[str, Any]) -> attacks.Attack:
    # YAML reads the label source `true` as a boolean, with or without quotes, where any value is allowed.
    return attacks.get({key: "true" if value is True else value for key, value in options.items()})


def _optimizer(training: TrainingConfig, steps: int = 1) -> keras.optimizers.Optimizer:
    rate: Any = training.learning_rate
    if training.decay == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    optimizer = keras.optimizers.get(training.optimizer)
    return type(optimizer)(learning_rate=rate, **training.optimizer_options)


def _frozen(networks: Iterable[str]) -> dict[str, str]:
    """The names by which schemes know the fine-tuned networks as they were."""
    return {f"frozen_{name}": name for name in networks}


def _load_data(config: DataConfig, folder: Path, seed: int) -> data.ImageData:
    if config.root is None and config.format != "synthetic_faces":
        raise ValueError(f"Data of the format {config.format!r} must be given as --data.root FOLDER. Received: none")
    root = Path(config.root or folder / "synthetic_faces")
    split: dict[str, Any] = {"validation_share": config.validation_share, "seed": seed}
    classes: dict[str, Any] = {"class_names": config.class_names, **split}
    unsplit: dict[str, Any] = {"ordered": config.ordered, "test_share": config.test_share, **classes}

    def read_adience() -> data.ImageData:
        if config.fold is None:
            raise ValueError("Adience is tested on one of its folds, 0 to 4. Received: data.fold=null")
        return data.adience.load(root, fold=config.fold, target=config.target, variant=config.variant, **split)

    def write_faces() -> data.ImageData:
        data.synthetic_faces.write_adience(
            root, num_subjects=config.num_subjects, images_per_subject=config.images_per_subject, seed=seed
        )
        return read_adience()

    def read_table() -> data.ImageData:
        if config.table is None:
            raise ValueError("Data of the format 'table' needs the CSV file as --data.table FILE. Received: none")
        return data.tables.load(config.table, root, fold=config.fold, **unsplit)

    formats: dict[str, Callable[[], data.ImageData]] = {
        "synthetic_faces": write_faces,
        "adience": read_adience,
        "idx": lambda: data.idx.load(root, **classes),
        "folder": lambda: data.folder.load(root, **unsplit),
        "table": read_table,
    }
    images = formats[config.format]()
    if config.prepared:
        images = data.prepared.attach(images, config.prepared, root=root)
    limits = {
        "train": config.limit,
        "validation": config.limit and max(1, round(config.limit * config.validation_share)),
        "test": config.test_limit,
    }
    limited = {part: getattr(images, part).limit(limit, seed) for part, limit in limits.items() if limit}
    return dataclasses.replace(images, **limited)


def _batches(examples: data.Examples, config: Config, **options: Any) -> tf.data.Dataset:
    return data.batches(
        examples, image_size=config.data.image_size, cache=config.data.cache, **{"batch_size": 128, **options}
    )


def _claim(folder: Path, config: Config) -> None:
    """Makes the run folder this configuration's own, or finds that it is."""
    described = dataclasses.asdict(config)
    del described["run_dir"]  # A folder that was moved, or handed to somebody, is the same run.
    described = json.loads(json.dumps(described))
    path = folder / "config.yaml"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "environment.json", json.dumps(_environment(), indent=2))
        _write(path, yaml.safe_dump(described, sort_keys=False))
    found = yaml.safe_load(path.read_text())
    differing = [key for key in described if described[key] != found.get(key)]
    if differing:
        raise ValueError(
            f"{folder} holds a run of another configuration. Choose another --run_dir, or delete the folder. "
            f"Received: other values of {', '.join(differing)}"
        )


def _environment() -> dict[str, Any]:
    packages = ("keras", "numpy", "pandas")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "satm_tf": satm_tf.__version__,
        "tensorflow": tf.__version__,
        "devices": [f"{device.device_type} {device.name}" for device in tf.config.list_physical_devices()],
        **{name: metadata.version(name) for name in packages},
    }


def _train(stage: str, work: Callable[[], tuple[Networks, pd.DataFrame]], folder: Path, seed: int) -> None:
    final = folder / "networks" / stage
    if final.exists():
        print(f"{stage}: finished before")
        return
    began = time.monotonic()
    keras.utils.clear_session()
    keras.utils.set_random_seed(zlib.crc32(f"{seed}/{stage}".encode()))
    networks, history = work()
    temporary = final.with_name(f".{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, network in networks.items():
        network.save(temporary / f"{name}.keras")
    initial = {name: network.initial_weights for name, network in networks.items()}
    _write(temporary / "initial_weights.json", json.dumps(initial, indent=2))
    history.to_csv(temporary / "history.csv", index=False)
    temporary.rename(final)
    print(f"{stage}: {len(history)} epochs in {time.monotonic() - began:.0f} s")


def _fine_tune(config: Config, name: str, images: data.ImageData) -> tuple[Networks, pd.DataFrame]:
    network = {**config.networks, **config.holdouts}[name]
    size = config.data.image_size
    networks = {
        name: ImageClassifier.from_backbone(
            network.backbone,
            num_classes=images.num_classes,
            image_shape=(size, size, 3),
            weights=network.weights,
            dropout=network.dropout,
            name=name,
        )
    }
    trainer = CoTraining(networks, learns_from="nobody", seed=config.seed)
    return networks, _fit(trainer, config.fine_tune, config, images, f"fine_tune/{name}")


def _co_train(
    config: Config, name: str, images: data.ImageData, attack: attacks.Attack, folder: Path
) -> tuple[Networks, pd.DataFrame]:
    scheme = config.schemes[name]
    networks = {network: _load(folder, f"fine_tune/{network}", network) for network in config.networks}
    frozen = _frozen(config.networks)
    sources = resolve_sources(scheme.learns_from, networks, frozen)
    used = {alias: network for alias, network in frozen.items() if any(alias in names for names in sources.values())}
    trainer = CoTraining(
        networks,
        attack=attack,
        learns_from=scheme.learns_from,
        frozen={alias: _load(folder, f"fine_tune/{network}", network) for alias, network in used.items()},
        domain_adaptation=scheme.domain_adaptation,
        adversarial_weight=scheme.adversarial_weight,
        seed=config.seed,
    )
    return networks, _fit(trainer, config.co_train, config, images, f"co_train/{name}")


def _load(folder: Path, stage: str, name: str) -> ImageClassifier:
    return keras.saving.load_model(folder / "networks" / stage / f"{name}.keras")


def _fit(
    trainer: CoTraining, training: TrainingConfig, config: Config, images: data.ImageData, stage: str
) -> pd.DataFrame:
    rates = {name: f"val_{name}_classification_rate" for name in trainer.networks}
    callbacks = [Progress(stage, {"val_loss": "val_loss", **rates}), keras.callbacks.TerminateOnNaN()]
    if training.patience is not None:
        callbacks.append(keras.callbacks.EarlyStopping(patience=training.patience, restore_best_weights=True))
    drop_remainder = len(images.train) >= training.batch_size
    options = {"batch_size": training.batch_size, "seed": config.seed, "drop_remainder": drop_remainder}
    train = _batches(images.train, config, shuffle=True, augmentation=config.data.augmentation, **options)
    trainer.compile(optimizer=_optimizer(training, training.epochs * len(train)))
    history = trainer.fit(
        train,
        validation_data=_batches(images.validation, config),
        epochs=training.epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    frame = pd.DataFrame(history.history).rename_axis("epoch").reset_index()
    if not all(math.isfinite(loss) for loss in history.history["loss"]):
        raise FloatingPointError(
            f"The loss of {stage} is not a finite number; lower the learning rate. "
            f"Received: learning_rate={training.learning_rate}"
        )
    return frame


def _evaluate(
    config: Config, images: data.ImageData, evaluation_attacks: Mapping[str, attacks.Attack], folder: Path
) -> pd.DataFrame:
    path = folder / "results.csv"
    if not path.exists():
        keras.utils.clear_session()
        measured = {
            f"{scheme}/{name}": _load(folder, f"co_train/{scheme}", name)
            for scheme in config.schemes
            for name in config.networks
        } | {f"holdout/{name}": _load(folder, f"fine_tune/{name}", name) for name in config.holdouts}
        results = transfer_matrix(
            sources=measured,
            targets=measured,
            dataset=_batches(images.test, config),
            attacks=evaluation_attacks,
            ordered=images.ordered,
            seed=config.seed,
            stage="evaluate",
        )
        results.insert(0, "fold", config.data.fold)
        results.insert(1, "scheme", results.target.str.split("/").str[0])
        _write(path, results.to_csv(index=False))
    # Read back in either case, so that a run that goes on gives the very frame of one that did not stop.
    return pd.read_csv(path, keep_default_na=False, na_values={"one_off_rate": ""})


def _print_tables(results: pd.DataFrame, ordered: bool, evaluation_attacks: Mapping[str, attacks.Attack]) -> None:
    for name, attack in evaluation_attacks.items():
        for value in ("classification_rate", "one_off_rate") if ordered else ("classification_rate",):
            table = robustness_table(results, name, value)
            print(f"\n{value.replace('_', ' ')}, {name}, epsilon {attack.epsilon:g}")
            print(table.map("{:.1%}".format).to_string())
    leaking = label_leaking(results).query("leaks")
    print(f"\nLabel leaking (adversarial images classified better than clean ones): {len(leaking) or 'none found'}")
    if len(leaking):
        print(leaking[["attack", "source", "target", "classification_rate", "clean_rate"]].to_string(index=False))


def _export(config: Config, labels: tuple[str, ...], folder: Path) -> None:
    path = folder / "exports.json"
    if config.export.scheme is None or path.exists():
        return
    exported = {}
    for name in config.networks:
        network = _load(folder, f"co_train/{config.export.scheme}", name)
        exported[name] = str(serving.export_saved_model(network, Path(config.export.folder) / name, labels=labels))
        print(f"exported {exported[name]}")
    _write(path, json.dumps(exported, indent=2))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)
