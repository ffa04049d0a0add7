"""Facts about a network from its run, for the model card of an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from satm_tf.evaluation import Predictions, label_leaking, read_results
from satm_tf.evaluation.ladder import WORST, ladder_table
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.evaluation.predictions import CLEAN
from satm_tf.evaluation.rungs import BESIDE, CLEAN_RUNG, PARTNER, QUERIES, RUNGS, UNSEEN_RUNG, WHITE_BOX, Rung
from satm_tf.experiment.run_folder import CO_TRAIN, FINE_TUNE, RunFolder, Stage
from satm_tf.metrics import at_chance
from satm_tf.serving.card import NOT_RUN
from satm_tf.storage import read_config, read_csv, read_json


def facts_from_run(folder: str | Path, scheme: str, network: str) -> dict[str, Any]:
    """Gathers the facts about a network from its run folder.

    Args:
        folder: The run folder. It must hold `config.yaml`; the environment, metrics, results and checks are used if
            they exist.
        scheme: The scheme that trained the network.
        network: Its name.

    Returns:
        The facts `training`, `checks`, `results`, `ladder`, `at_chance` and `label_leaking`, for
        `export_saved_model(..., card=...)`. A result is an accuracy with its Wilson 95 % interval, on clean images and
        under attacks by the network itself, its co-trained partners and the rungs of the ladder. `ladder` has these by
        rung, with the accuracy of the same network without a defence, if the run has one. Without checks, or without
        predictions to test for label leaking, the card says that they were not run.

    Raises:
        FileNotFoundError: If the folder holds no run.

    Example:
        >>> card = facts_from_run("runs/quickstart", "satm", "compact_vgg")
        >>> export_saved_model(network, "exported_models/compact_vgg", labels=names, card=card)
    """
    run, name = RunFolder(folder), NetworkName(scheme, network)
    if not run.config.exists():
        raise FileNotFoundError(f"A run folder must contain config.yaml. Received: {folder}")
    config = read_config(run.path)
    schemes = config.get("schemes", {})
    stages = [Stage(FINE_TUNE, network), *(Stage(CO_TRAIN, each) for each in _lineage(schemes, scheme))]
    training = {
        "run": config.get("name"),
        "seed": config.get("seed"),
        "data": {key: value for key, value in config.get("data", {}).items() if value is not None},
        "scheme": {"name": scheme, **schemes.get(scheme, {})},
        **{
            part: config.get(part, {})
            for part in ("networks", "holdouts", "surrogates", "attack", "fine_tune", "co_train", "evaluation_attacks")
        },
        "epochs": _epochs(run, stages),
        "environment": read_json(run.environment) if run.environment.exists() else {},
    }
    facts: dict[str, Any] = {"training": training, "checks": NOT_RUN}
    if run.checks.exists():
        checks = read_csv(run.checks, keep_default_na=False)
        facts["checks"] = checks[checks.network == str(name)].to_dict("records")
    if run.results.exists():
        results = read_results(run.results)
        rows = results[results.target == str(name)].to_dict("records")
        facts["results"] = [_result(row) for row in rows if row["rung"]]
    if run.predictions.exists():
        predictions = Predictions.load(run.predictions)
        undefended = [each for each, described in schemes.items() if "undefended" in (each, described.get("preset"))]
        facts["ladder"] = _ladder(predictions, str(name), [str(NetworkName(each, network)) for each in undefended])
        clean = float(predictions.correct(CLEAN, 0.0, "", str(name)).mean())
        facts["at_chance"] = at_chance(clean, predictions.num_classes)
        cells = label_leaking(predictions)
        leaking = cells[cells.leaks & (cells.target == str(name))]
        facts["label_leaking"] = [f"{cell.attack} of {cell.source}" for cell in leaking.itertuples()]
    return facts


def _ladder(predictions: Predictions, name: str, undefended: list[str]) -> list[dict[str, Any]]:
    """A row for clean images, each rung, the worst of them and white box; `before` is without a defence."""
    table = ladder_table(predictions)
    before = next((each for each in undefended if each in table.index and each != name), None)
    places = {**BESIDE, **RUNGS, WORST: Rung("worst of these", "anybody without the weights")}
    rows = []
    for rung in dict.fromkeys(table.columns.get_level_values("rung")):
        figures = {value: _known(table.loc[name, (rung, value)]) for value in ("accuracy", "low", "high", "images")}
        if figures["accuracy"] is not None:
            without = None if before is None else _known(table.loc[before, (rung, "accuracy")])
            row = {"rung": rung, "attacker": places[rung].label, "who": places[rung].who, "before": without, **figures}
            rows.append({**row, "images": int(row["images"])})
    return rows


def _lineage(schemes: Mapping[str, Any], scheme: str) -> list[str]:
    """A scheme and those that it started from, the earliest first."""
    before = schemes.get(scheme, {}).get("starts_from")
    return [*(_lineage(schemes, before) if before else []), scheme]


def _epochs(run: RunFolder, stages: list[Stage]) -> dict[str, int]:
    if not run.metrics.exists():
        return {}
    counts = read_csv(run.metrics).stage.value_counts()
    return {str(stage): int(counts[str(stage)]) for stage in stages if str(stage) in counts}


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    source = NetworkName.parse(row["source"])
    kind = {**{rung: RUNGS[rung].label for rung in RUNGS}, UNSEEN_RUNG: UNSEEN, PARTNER: "partner"}
    attackers = {CLEAN_RUNG: "none", WHITE_BOX: "itself (white box)", QUERIES: RUNGS[QUERIES].label}
    return {
        "attack": row["attack"],
        "epsilon": row["epsilon"],
        "rung": row["rung"],
        "attacked_by": attackers.get(row["rung"]) or f"{source.network} ({kind[row['rung']]})",
        "fold": _known(row.get("fold")),
        "images": row["images"],
        "accuracy": row["accuracy"],
        "low": row["accuracy_low"],
        "high": row["accuracy_high"],
        "one_off_accuracy": _known(row["one_off_accuracy"]),
    }


def _known(value: Any) -> Any:
    return None if pd.isna(value) else value
