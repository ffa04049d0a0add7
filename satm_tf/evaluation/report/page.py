"""One page on a run or an evaluation, which needs nothing beside it to be read."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd
import yaml

from satm_tf.evaluation.predictions import Predictions
from satm_tf.evaluation.report import sections
from satm_tf.evaluation.tables import read_results
from satm_tf.storage import write_text


def write_report(folder: str | Path) -> Path:
    """Writes `report.html` into a run folder or an evaluation's, and the figures in it into `figures/`.

    What the folder does not hold is left out: `checks.csv`, `results.csv`, `predictions.npz`, `surfaces.csv`,
    `metrics.csv` (columns as `CoTraining` names them, and `stage`), `gallery/*.png`, `class_names.json`, `config.yaml`,
    `data.txt`, `environment.json`. The page is one file, without scripts, that needs no network; every figure is also a
    PNG, and its numbers a CSV, in `figures/`.

    Args:
        folder: The folder.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: If the folder holds nothing to report.

    Example:
        >>> write_report("runs/quickstart")
        PosixPath('runs/quickstart/report.html')
    """
    folder = Path(folder)
    known = ("checks.csv", "results.csv", "metrics.csv", "config.yaml")
    if not any((folder / name).exists() for name in known):
        raise FileNotFoundError(f"A report is made of one of {', '.join(known)}. Received: {folder}, which has none")
    drawings = folder / "figures"
    # Drawn anew as a whole: a figure of an earlier state must not stay.
    shutil.rmtree(drawings, ignore_errors=True)
    drawings.mkdir()

    checks = _read(folder / "checks.csv", lambda path: pd.read_csv(path, keep_default_na=False))
    results = _read(folder / "results.csv", read_results)
    metrics = _read(folder / "metrics.csv", pd.read_csv)
    predictions = _read(folder / "predictions.npz", Predictions.load)
    surfaces = _read(folder / "surfaces.csv", pd.read_csv)
    config = _read(folder / "config.yaml", lambda path: yaml.safe_load(path.read_text(encoding="utf-8"))) or {}
    names = _read(folder / "class_names.json", lambda path: json.loads(path.read_text(encoding="utf-8")))

    parts = [sections.verdicts(checks, results, predictions)]
    if results is not None:
        parts += [sections.rates(results), sections.matrices(results, drawings)]
    if predictions is not None:
        parts.append(sections.comparisons(predictions))
    if surfaces is not None:
        parts.append(sections.surfaces(surfaces, drawings))
    if predictions is not None:
        parts.append(sections.confusion(predictions, names, drawings))
    if metrics is not None:
        parts.append(sections.training(metrics, drawings))
    parts += [sections.gallery(folder), sections.every_check(checks), sections.origin(folder, config)]
    shown = [part for part in parts if part.lead or part.tables or part.pictures or part.texts]

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["data_uri"] = lambda path: (
        f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    )
    # Names may break after what joins their parts, so that a phone's width holds more columns.
    environment.filters["breakable"] = lambda name: markupsafe.Markup(
        re.sub("([/_])", r"\1<wbr>", str(markupsafe.escape(name)))
    )
    title = str(config.get("name") or f"Evaluation: {folder.resolve().name}")
    page = environment.get_template("report.html.j2").render(
        title=title, summary=sections.summary(results), sections=shown
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    return read(path) if path.exists() else None
