"""What comes of a run once its networks are trained: measurements, verdicts, the report, exports."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import pandas as pd

from satm_tf import attacks, data, serving
from satm_tf.evaluation import Predictions, label_leaking, masking_checks, measure, read_results, robustness_table
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.evaluation.report import write_report
from satm_tf.evaluation.report.illustrations import write_galleries, write_surfaces
from satm_tf.experiment.card import facts_from_run
from satm_tf.experiment.config import Config
from satm_tf.experiment.images import make_batches
from satm_tf.experiment.run_folder import CO_TRAIN, FINE_TUNE, Stage
from satm_tf.models import ImageClassifier
from satm_tf.storage import read_json, sha256, write_json, write_text


def conclude(config: Config, images: data.ImageData) -> pd.DataFrame:
    """Measures, checks, reports, prints and exports; what is there already is not made again.

    Args:
        config: The run's configuration, with the networks of all stages in its folder.
        images: Its images.

    Returns:
        The frame of `results.csv`.
    """
    folder, table_attacks = config.folder, config.table_attacks()
    keras.utils.clear_session()
    unseen = {
        str(name): folder.load(Stage.of(name), name.network)
        for name in (NetworkName(UNSEEN, holdout) for holdout in config.holdouts)
    }
    trained = {
        name: folder.load(Stage.of(name), name.network)
        for name in (
            NetworkName(scheme, network) for scheme in config.schemes for network in config.networks_of(scheme)
        )
    }
    networks = {**{str(name): network for name, network in trained.items()}, **unseen}
    results = _measure(config, images, table_attacks, networks)
    checks = _check(config, images, trained, unseen, table_attacks)
    shutil.rmtree(folder.blocks, ignore_errors=True)
    _print_tables(results, images.ordered, table_attacks)
    _print_leaking(Predictions.load(folder.predictions))
    if checks is not None:
        failed = checks[checks.verdict == "fail"]
        print(f"\nChecks for masked gradients and the like: {len(failed)} of {len(checks)} fail")
        for row in failed.itertuples():
            print(f"  {row.network}, {row.check}: {row.explanation}")
    if not folder.report.exists():
        source = next(iter(networks))
        write_text(folder.data, str(images.account))
        write_json(folder.class_names, images.class_names)
        write_galleries(
            folder.path,
            table_attacks,
            source=source,
            network=networks[source],
            dataset=make_batches(images.test, config),
            class_names=images.class_names,
        )
        print(f"\nwritten: {write_report(folder.path)}")
    _export(config, images.class_names)
    return results


def _measure(
    config: Config,
    images: data.ImageData,
    table_attacks: Mapping[str, attacks.Attack],
    networks: Mapping[str, ImageClassifier],
) -> pd.DataFrame:
    folder = config.folder
    if not folder.results.exists():
        predictions = measure(
            sources=networks,
            targets=networks,
            dataset=make_batches(images.test, config),
            attacks=table_attacks,
            seed=config.seed,
            folder=folder.blocks,
            stage="evaluate",
        )
        predictions.save(folder.predictions)
        results = predictions.frame(images.ordered)
        results.insert(0, "fold", config.data.fold)
        results.insert(1, "scheme", [NetworkName.parse(target).scheme for target in results.target])
        write_text(folder.results, results.to_csv(index=False))
    # Read back in either case, so that a resumed run gives the very frame of one that did not stop.
    return read_results(folder.results)


def _check(
    config: Config,
    images: data.ImageData,
    trained: Mapping[NetworkName, ImageClassifier],
    unseen: Mapping[str, ImageClassifier],
    table_attacks: Mapping[str, attacks.Attack],
) -> pd.DataFrame | None:
    """The verdicts on the networks of some schemes, with the surfaces of their loss; None where none are asked for."""
    chosen = config.checks.schemes if config.checks.schemes is not None else list(config.schemes)
    names = [name for name in trained if name.scheme in chosen]
    folder = config.folder
    if not names:
        return None
    if not folder.checks.exists():
        networks = {str(name): trained[name] for name in names}
        dataset = make_batches(images.test.limit(config.checks.limit, config.seed), config)
        epsilon = max(attack.epsilon for attack in table_attacks.values())
        effort: dict[str, Any] = dict(config.checks.effort)
        checks = masking_checks(
            networks,
            undefended=unseen,
            before={str(name): folder.load(Stage(FINE_TUNE, name.network), name.network) for name in names},
            dataset=dataset,
            epsilon=epsilon,
            seed=config.seed,
            folder=folder.blocks,
            **effort,
        )
        write_surfaces(folder.path, networks, dataset=dataset, epsilon=epsilon, seed=config.seed)
        write_text(folder.checks, checks.to_csv(index=False))
    return pd.read_csv(folder.checks)


def _print_tables(results: pd.DataFrame, ordered: bool, table_attacks: Mapping[str, attacks.Attack]) -> None:
    for name, attack in table_attacks.items():
        for value in ("accuracy", "one_off_accuracy") if ordered else ("accuracy",):
            table = robustness_table(results, name, value)
            print(f"\n{value.replace('_', ' ')}, {name}, epsilon {attack.epsilon:g}")
            print(table.map("{:.1%}".format).to_string())


def _print_leaking(predictions: Predictions) -> None:
    leaking = label_leaking(predictions).query("leaks")
    print(f"\nLabel leaking (adversarial images classified better than clean ones): {len(leaking) or 'none found'}")
    if len(leaking):
        print(leaking[["attack", "source", "target", "accuracy", "clean_accuracy"]].to_string(index=False))


def _export(config: Config, labels: tuple[str, ...]) -> None:
    scheme, folder = config.export.scheme, config.folder
    if scheme is None:
        return
    exported = read_json(folder.exports) if folder.exports.exists() else {}
    for name in config.networks_of(scheme):
        if name in exported:
            continue
        stage = Stage(CO_TRAIN, scheme)
        digest = sha256(folder.network(stage, name))
        place = Path(config.export.folder) / name
        # A kill between an export and its record leaves a version that is ours.
        version = _version_of(place, digest)
        if version is None:
            card = {**facts_from_run(folder.path, scheme, name), "network_file": {"sha256": digest}}
            version = serving.export_saved_model(folder.load(stage, name), place, labels=labels, card=card)
        exported[name] = str(version)
        print(f"exported {version}")
        write_json(folder.exports, exported)


def _version_of(place: Path, digest: str) -> Path | None:
    """The exported version that was made from this file of a network, if there is one."""
    for card in place.glob("*/assets.extra/model_card.json"):
        if read_json(card).get("network_file", {}).get("sha256") == digest:
            return card.parents[1]
    return None
