"""What a model is, how it was made and what it is worth, as facts and as a page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from satm_tf.evaluation import label_leaking, wilson_interval
from satm_tf.evaluation.tables import HOLDOUT
from satm_tf.evaluation.transfer import CLEAN

NOT_RUN = "not run"

INTENDED_USE = (
    "Research on adversarial robustness, and applications whose owner has measured the model on images of the kind "
    "that it will see. It gives one of its classes to every image, also to one that shows none of them."
)
LIMITS = (
    "Robustness was measured against the attacks named above at their epsilon, and holds for nothing else: white-box "
    "attackers, larger perturbations, patches, rotations and natural change of any kind may defeat the model.",
    "An interval says how far the figure may be off for images like those of the test set. Other cameras, countries "
    "and years are not like them.",
    "Where the classes are attributes of people, such as age group or gender: the model judges how a face looks in one "
    "image and not who the person is; data sets of faces favour some ages, skin tones and countries, and error rates "
    "differ between groups that no figure above separates. Measure them before any use that touches people. Not for "
    "identifying persons, nor for decisions about work, credit, law, borders or access.",
    "The probabilities are not calibrated.",
)


def from_run(folder: str | Path, scheme: str, network: str) -> dict[str, Any]:
    """Gathers what a run folder of `python -m satm_tf.train` tells of one of its networks.

    Args:
        folder: The run folder, with `config.yaml`; `environment.json`, `metrics.csv`, `results.csv` and `checks.csv`
            are used if they are there.
        scheme: The scheme that trained the network.
        network: Its name.

    Returns:
        The facts `training`, `results` and `checks`, for `export_saved_model(..., card=...)`. A result is a share of
        images classified rightly, with its Wilson 95 % interval. Of `checks.csv` the rows are taken whose `target` (or
        `network`) is this one; without the file the masking checks are said not to have been run.

    Raises:
        FileNotFoundError: If the folder holds no run.

    Example:
        >>> card = from_run("runs/quickstart", "satm", "compact_vgg")
        >>> export_saved_model(network, "exported_models/compact_vgg", labels=names, card=card)
    """
    folder = Path(folder)
    if not (folder / "config.yaml").exists():
        raise FileNotFoundError(f"A run folder has a config.yaml. Received: {folder}")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    target = f"{scheme}/{network}"
    described = {
        "run": config.get("name"),
        "seed": config.get("seed"),
        "data": {key: value for key, value in config.get("data", {}).items() if value is not None},
        "networks": config.get("networks", {}),
        "holdouts": config.get("holdouts", {}),
        "scheme": {"name": scheme, **config.get("schemes", {}).get(scheme, {})},
        "attack": config.get("attack", {}),
        "fine_tune": config.get("fine_tune", {}),
        "co_train": config.get("co_train", {}),
        "evaluation_attacks": config.get("evaluation_attacks", {}),
        "epochs": _epochs(
            folder / "metrics.csv", [f"fine_tune/{network}", *_lineage(config.get("schemes", {}), scheme)]
        ),
        "environment": _json(folder / "environment.json"),
    }
    facts: dict[str, Any] = {"training": described, "checks": _checks(folder / "checks.csv", target, network)}
    if (folder / "results.csv").exists():
        results = pd.read_csv(folder / "results.csv", keep_default_na=False, na_values={"one_off_accuracy": ""})
        facts["results"] = _results(results, target)
        leaking = label_leaking(results).query("leaks and target == @target")
        facts["label_leaking"] = [f"{row.attack} of {row.source}" for row in leaking.itertuples()]
    return facts


def _lineage(schemes: Mapping[str, Any], scheme: str) -> list[str]:
    """The stages of a scheme and of those that it started from, the first one first."""
    before = schemes.get(scheme, {}).get("starts_from")
    return [*(_lineage(schemes, before) if before else []), f"co_train/{scheme}"]


def _results(results: pd.DataFrame, target: str) -> list[dict[str, Any]]:
    scheme = target.split("/")[0]
    rows = []
    for row in results[results.target == target].to_dict("records"):
        source_scheme = row["source"].split("/")[0]
        if row["attack"] != CLEAN and source_scheme not in (scheme, HOLDOUT):
            continue
        by = {CLEAN: "nobody", target: "itself (white box)"}.get(row["source"] or CLEAN)
        partner = f"{row['source'].split('/')[-1]} ({HOLDOUT if source_scheme == HOLDOUT else 'partner'})"
        low, high = wilson_interval(row["accuracy"] * row["images"], row["images"])
        one_off = row.get("one_off_accuracy")
        rows.append(
            {
                "attack": row["attack"],
                "epsilon": row["epsilon"],
                "attacked_by": by or partner,
                "fold": row.get("fold"),
                "images": row["images"],
                "accuracy": row["accuracy"],
                "low": low,
                "high": high,
                "one_off_accuracy": None if one_off is None or math.isnan(one_off) else one_off,
            }
        )
    return rows


def _checks(path: Path, target: str, network: str) -> list[dict[str, Any]] | str:
    if not path.exists():
        return NOT_RUN
    frame = pd.read_csv(path, keep_default_na=False)
    column = "target" if "target" in frame else "network"
    return frame[frame[column].isin([target, network])].to_dict("records")


def _epochs(path: Path, stages: Sequence[str]) -> dict[str, int]:
    if not path.exists():
        return {}
    counts = pd.read_csv(path).stage.value_counts()
    return {stage: int(counts[stage]) for stage in stages if stage in counts}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def write_card(folder: str | Path, facts: Mapping[str, Any]) -> None:
    """Writes `model_card.json` and `model_card.md` into a folder.

    Args:
        folder: The folder.
        facts: As `export_saved_model` gathers them; see `render`.
    """
    # NaN is no JSON, and a fact that is none is a mistake of whoever gathered it.
    text = json.dumps(facts, indent=2, allow_nan=False, default=_plain)
    (Path(folder) / "model_card.json").write_text(text + "\n")
    (Path(folder) / "model_card.md").write_text(render(json.loads(text)))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def render(facts: Mapping[str, Any]) -> str:
    """The facts of a model as a page of Markdown.

    Args:
        facts: What `model_card.json` holds: `name`, `version`, `exported`, `network`, `labels`, `signatures`,
            `verification` and `software`, which every export has; `training`, `results`, `checks` and `label_leaking`,
            which a run adds; anything else is shown as it is under its own heading.

    Returns:
        The page.
    """
    known = {"name", "version", "labels", "results", "checks", "label_leaking", "limits", "intended_use"}
    sections = [
        f"# {facts['name']}, version {facts['version']}",
        "## Classes\n\n" + "\n".join(f"{index}. {label}" for index, label in enumerate(facts["labels"])),
        "## Figures\n\n" + _figures(facts.get("results", [])),
        "## Is the defence real?\n\n" + _verdicts(facts),
        "## Intended use\n\n" + facts["intended_use"],
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in facts["limits"]),
        *(
            f"## {name.replace('_', ' ').capitalize()}\n\n{_outline(value)}"
            for name, value in facts.items()
            if name not in known
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _figures(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "None were given: measure the model before you rely on it."
    rows = [
        {
            "attack": row["attack"],
            "epsilon": f"{row['epsilon']:g}",
            "attacked by": row["attacked_by"],
            "fold": "" if row["fold"] in (None, "") else row["fold"],
            "images": row["images"],
            "classified rightly": f"{row['accuracy']:.1%}",
            "95 % interval": f"{row['low']:.1%} to {row['high']:.1%}",
            "within one class": "" if row["one_off_accuracy"] is None else f"{row['one_off_accuracy']:.1%}",
        }
        for row in results
    ]
    return _table(rows)


def _verdicts(facts: Mapping[str, Any]) -> str:
    checks, leaking = facts.get("checks", NOT_RUN), facts.get("label_leaking")
    masking = _table(checks) if checks and checks != NOT_RUN else f"Checks for gradient masking: {NOT_RUN}."
    told = NOT_RUN if leaking is None else ", ".join(leaking) or "none found"
    return f"{masking}\n\nLabel leaking (adversarial images classified better than clean ones): {told}."


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    def line(cells: Any) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(rows[0]), line("---" for _ in rows[0]), *(line(row.values()) for row in rows)])


def _outline(value: Any, depth: int = 0) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    lines = []
    for key, item in value.items():
        nested = isinstance(item, Mapping) and item
        told = f"\n{_outline(item, depth + 1)}" if nested else f" {item if item not in (None, {}, []) else 'none'}"
        lines.append(f"{'  ' * depth}- {key}:{told}")
    return "\n".join(lines)
