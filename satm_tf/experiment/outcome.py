"""The steps after training: the assessment of the networks, and exports."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import pandas as pd

from satm_tf import bars, data, serving
from satm_tf.evaluation import assess
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.experiment.card import facts_from_run
from satm_tf.experiment.config import Config
from satm_tf.experiment.detecting import detector_of
from satm_tf.experiment.images import make_batches
from satm_tf.experiment.run_folder import CO_TRAIN, FINE_TUNE, Stage
from satm_tf.storage import read_json, sha256, write_json


def conclude(config: Config, images: data.ImageData) -> pd.DataFrame:
    """Measures, checks, reports, prints and exports; existing results are reused.

    Args:
        config: The run's configuration, with the networks of all stages in its folder.
        images: Its images.

    Returns:
        The frame of `results.csv`.
    """
    folder, attacks = config.folder, config.table_attacks()
    keras.utils.clear_session()
    trained = [NetworkName(scheme, network) for scheme in config.schemes for network in config.networks_of(scheme)]
    unseen = [NetworkName(UNSEEN, holdout) for holdout in config.holdouts]
    schemes = config.schemes if config.checks.schemes is None else config.checks.schemes
    checked = [name for name in trained if name.scheme in schemes]
    measured = {str(name): folder.load(Stage.of(name), name.network) for name in (*trained, *unseen)}
    assessment = assess(
        measured,
        {
            **measured,
            **{str(name): folder.load(config.stage_of(name), name.network) for name in config.surrogate_names},
        },
        groups=config.groups,
        dataset=make_batches(images.test, config),
        attacks=attacks,
        ordered=images.ordered,
        queries=config.queries.budgets,
        query_limit=config.queries.limit,
        check_limit=config.checks.limit,
        check_epsilon=max((attack.epsilon for attack in attacks.values()), default=None),
        checked=[str(name) for name in checked],
        before={str(name): folder.load(Stage(FINE_TUNE, name.network), name.network) for name in checked},
        effort=config.checks.effort,
        class_names=images.class_names,
        account=str(images.account),
        columns={
            "fold": config.data.fold,
            "scheme": lambda rows: [NetworkName.parse(each).scheme for each in rows.target],
        },
        seed=config.seed,
        folder=folder.path,
        stage="evaluate",
    )
    shutil.rmtree(folder.blocks, ignore_errors=True)
    bars.say(f"\n{assessment}")
    if not folder.report.exists():
        bars.say(f"\nwritten: {assessment.report()}")
    _export(config, images)
    return assessment.results


def _export(config: Config, images: data.ImageData) -> None:
    scheme, folder = config.export.scheme, config.folder
    if scheme is None:
        return
    exported = read_json(folder.exports) if folder.exports.exists() else {}
    for name in config.export.networks or config.networks_of(scheme):
        if name in exported:
            continue
        bars.begin("export")
        stage = Stage(CO_TRAIN, scheme)
        digest = sha256(folder.network(stage, name))
        place = Path(config.export.folder) / name
        # A kill between an export and its record leaves a version that belongs to this run.
        cards = place.glob("*/assets.extra/model_card.json")
        version = next(
            (card.parents[1] for card in cards if read_json(card).get("network_file", {}).get("sha256") == digest), None
        )
        if version is None:
            card = {**facts_from_run(folder.path, scheme, name), "network_file": {"sha256": digest}}
            if card.get("at_chance"):
                bars.say(f"warning: {name} is no better than chance on clean images; its model card says so")
            detector = detector_of(config, images, name)
            network = folder.load(stage, name)
            version = serving.export_saved_model(
                network, place, labels=images.class_names, card=card, detector=detector
            )
        exported[name] = str(version)
        bars.say(f"exported {version}")
        write_json(folder.exports, exported)
