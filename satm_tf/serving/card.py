"""The model card: what a model is, how it was made and how it performs, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from satm_tf.storage import write_text

NOT_RUN = "not run"
_SHOWN = (
    *("name", "version", "labels", "at_chance", "ladder", "results", "checks", "label_leaking"),
    *("limits", "intended_use", "detector"),
)

INTENDED_USE = (
    "Research on adversarial robustness, and applications whose owner has measured the model on the kind of images "
    "that it will see. It assigns one of its classes to every image, even to one that shows none of them."
)
LIMITS = (
    "The figures hold for the attacks named above at their epsilon, and for nothing else: white-box attackers, larger "
    "perturbations, patches, rotations and natural change of any kind may defeat the model.",
    "An interval covers images like those of the test set. Images from other cameras, countries and years differ from "
    "them.",
    "Where the classes are attributes of people, such as age group or gender: the model judges how a face looks in one "
    "image, not who the person is. Data sets of faces favour some ages, skin tones and countries, and error rates "
    "differ between groups that the figures above do not separate. Measure them before any use that affects people. "
    "Do not use it to identify people, or for decisions about work, credit, law, borders or access.",
    "The probabilities are not calibrated.",
)
DETECTOR_LIMIT = (
    "The detector is an alarm, not a defence: an attacker who knows of it can fool it together with the classifier, as "
    "Carlini and Wagner (2017) have shown for ten detectors. A score below the threshold is no evidence that an image "
    "is harmless."
)


def write_card(folder: str | Path, facts: Mapping[str, Any]) -> None:
    """Writes `model_card.json` and `model_card.md`, of facts as `render` takes them, into a folder."""
    # JSON has no NaN; a NaN here is a bug in gathering the facts.
    text = json.dumps(facts, indent=2, allow_nan=False, default=_plain)
    write_text(Path(folder) / "model_card.json", text + "\n")
    write_text(Path(folder) / "model_card.md", render(json.loads(text)))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def render(facts: Mapping[str, Any]) -> str:
    """The facts of a model as a page of Markdown, in the order of a model card on a hub, with its YAML front matter.

    Args:
        facts: What `model_card.json` holds: `name`, `version`, `exported`, `network`, `labels`, `signatures`,
            `verification` and `software`, which every export has; `training`, `at_chance`, `ladder`, `results`,
            `checks` and `label_leaking`, which a run adds; `detector`, of an export with one; anything else appears
            under its own heading.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("model_card.md.j2").render(facts=facts, shown=_SHOWN, not_run=NOT_RUN)
