"""What comes of a run once its networks are trained: measurements, verdicts, the report, exports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import pandas as pd

from satm_tf import attacks, data, serving
from satm_tf.evaluation import label_leaking, masking_checks, measure, read_results, robustness_table
from satm_tf.evaluation.report import write_report
from satm_tf.evaluation.report.illustrations import write_galleries, write_surfaces
from satm_tf.experiment.card import facts_from_run
from satm_tf.experiment.config import Config, scheme_networks
from satm_tf.experiment.images import make_batches
from satm_tf.models import ImageClassifier
from satm_tf.storage import write_text


def load_network(folder: Path, stage: str, name: str) -> ImageClassifier:
    """A network as a stage of a run has left it."""
    return keras.saving.load_model(folder / "networks" / stage / f"{name}.keras")


def conclude(
    config: Config, images: data.ImageData, evaluation_attacks: Mapping[str, attacks.Attack], folder: Path
) -> pd.DataFrame:
    """Measures, checks, reports, prints and exports; what is there already is not made again.

    Args:
        config: The run's configuration.
        images: Its images.
        evaluation_attacks: The attacks of its tables.
        folder: Its folder, with the networks of all stages.

    Returns:
        The frame of `results.csv`.
    """
    keras.utils.clear_session()
    holdouts = {f"holdout/{name}": load_network(folder, f"fine_tune/{name}", name) for name in config.holdouts}
    trained = {
        f"{scheme}/{name}": load_network(folder, f"co_train/{scheme}", name)
        for scheme in config.schemes
        for name in scheme_networks(config, scheme)
    }
    networks = {**trained, **holdouts}
    results = _measure(config, images, evaluation_attacks, networks, folder)
    checks = _check(config, images, trained, holdouts, evaluation_attacks, folder)
    shutil.rmtree(folder / "blocks", ignore_errors=True)
    _print_tables(results, images.ordered, evaluation_attacks)
    if checks is not None:
        failed = checks[checks.verdict == "fail"]
        print(f"\nChecks for masked gradients and the like: {len(failed)} of {len(checks)} fail")
        for row in failed.itertuples():
            print(f"  {row.network}, {row.check}: {row.explanation}")
    if not (folder / "report.html").exists():
        source = next(iter(trained))
        write_text(folder / "data.txt", str(images.account))
        write_text(folder / "class_names.json", json.dumps(images.class_names))
        dataset = make_batches(images.test, config)
        write_galleries(
            folder,
            evaluation_attacks,
            source=source,
            network=networks[source],
            dataset=dataset,
            class_names=images.class_names,
        )
        print(f"\nwritten: {write_report(folder)}")
    _export(config, images.class_names, folder)
    return results


def _measure(
    config: Config,
    images: data.ImageData,
    evaluation_attacks: Mapping[str, attacks.Attack],
    networks: Mapping[str, ImageClassifier],
    folder: Path,
) -> pd.DataFrame:
    path = folder / "results.csv"
    if not path.exists():
        predictions = measure(
            sources=networks,
            targets=networks,
            dataset=make_batches(images.test, config),
            attacks=evaluation_attacks,
            seed=config.seed,
            folder=folder / "blocks",
            stage="evaluate",
        )
        predictions.save(folder / "predictions.npz")
        results = predictions.frame(images.ordered)
        results.insert(0, "fold", config.data.fold)
        results.insert(1, "scheme", results.target.str.split("/").str[0])
        write_text(path, results.to_csv(index=False))
    # Read back in either case, so that a run that goes on gives the very frame of one that did not stop.
    return read_results(path)


def _check(
    config: Config,
    images: data.ImageData,
    trained: Mapping[str, ImageClassifier],
    holdouts: Mapping[str, ImageClassifier],
    evaluation_attacks: Mapping[str, attacks.Attack],
    folder: Path,
) -> pd.DataFrame | None:
    """The verdicts on the networks of some schemes, with the surfaces of their loss; None where none are asked for."""
    chosen = config.checks.schemes if config.checks.schemes is not None else list(config.schemes)
    networks = {name: network for name, network in trained.items() if name.split("/")[0] in chosen}
    path = folder / "checks.csv"
    if not networks:
        return None
    if not path.exists():
        dataset = make_batches(images.test.limit(config.checks.limit, config.seed), config)
        epsilon = max(attack.epsilon for attack in evaluation_attacks.values())
        effort: dict[str, Any] = dict(config.checks.effort)
        checks = masking_checks(
            networks,
            undefended=holdouts,
            before={
                name: load_network(folder, f"fine_tune/{name.split('/')[1]}", name.split("/")[1]) for name in networks
            },
            dataset=dataset,
            epsilon=epsilon,
            seed=config.seed,
            folder=folder / "blocks",
            **effort,
        )
        write_surfaces(folder, networks, dataset=dataset, epsilon=epsilon, seed=config.seed)
        write_text(path, checks.to_csv(index=False))
    return pd.read_csv(path)


def _print_tables(results: pd.DataFrame, ordered: bool, evaluation_attacks: Mapping[str, attacks.Attack]) -> None:
    for name, attack in evaluation_attacks.items():
        for value in ("accuracy", "one_off_accuracy") if ordered else ("accuracy",):
            table = robustness_table(results, name, value)
            print(f"\n{value.replace('_', ' ')}, {name}, epsilon {attack.epsilon:g}")
            print(table.map("{:.1%}".format).to_string())
    leaking = label_leaking(results).query("leaks")
    print(f"\nLabel leaking (adversarial images classified better than clean ones): {len(leaking) or 'none found'}")
    if len(leaking):
        print(leaking[["attack", "source", "target", "accuracy", "clean_accuracy"]].to_string(index=False))


def _export(config: Config, labels: tuple[str, ...], folder: Path) -> None:
    path = folder / "exports.json"
    if config.export.scheme is None:
        return
    exported = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in scheme_networks(config, config.export.scheme):
        if name in exported:
            continue
        network = load_network(folder, f"co_train/{config.export.scheme}", name)
        card = facts_from_run(folder, config.export.scheme, name)
        place = Path(config.export.folder) / name
        exported[name] = str(serving.export_saved_model(network, place, labels=labels, card=card))
        print(f"exported {exported[name]}")
        write_text(path, json.dumps(exported, indent=2))
