"""One self-contained page on a run or an evaluation."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from satm_tf.evaluation.folder import ResultsFolder
from satm_tf.evaluation.masking.verdicts import DETECTED, NOT_APPLICABLE, NOT_DETECTED
from satm_tf.evaluation.predictions import Predictions
from satm_tf.evaluation.report import sections
from satm_tf.evaluation.report.answer import accuracies, answer
from satm_tf.evaluation.tables import read_results
from satm_tf.storage import read_config, read_csv, read_json, write_text


def write_report(folder: str | Path) -> Path:
    """Writes `report.html` into a run folder or an evaluation's, and the figures in it into `figures/`.

    It begins with the answer: sentences made from the figures, the ladder as a chart, adversarial images, one table.
    Collapsed sections show the other files of `ResultsFolder` that exist. The page is one file without scripts, and
    loads nothing. Every figure is also a PNG, and its numbers a CSV, in `figures/`.

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
    files = ResultsFolder(folder)
    known = (files.checks, files.results, files.metrics, files.config)
    if not any(path.exists() for path in known):
        names = ", ".join(path.name for path in known)
        raise FileNotFoundError(f"A report needs at least one of {names}. Received: {files}, which has none")
    # All figures are redrawn, so that none from an earlier state remains.
    shutil.rmtree(files.figures, ignore_errors=True)
    files.figures.mkdir()

    checks = _read(files.checks, lambda path: read_csv(path, keep_default_na=False))
    results = _read(files.results, read_results)
    metrics = _read(files.metrics, read_csv)
    predictions = _read(files.predictions, Predictions.load)
    surfaces = _read(files.surfaces, read_csv)
    config = read_config(files.path) if files.config.exists() else {}
    class_names = _read(files.class_names, read_json) or []

    answers = answer(predictions) if predictions is not None and accuracies(predictions) else []
    chart, table = sections.ladder(predictions, files.figures) if answers else (None, None)
    gallery = sections.gallery(files)
    parts = [
        sections.verdicts(checks, results, predictions),
        _made(sections.comparisons, predictions),
        _made(sections.price, predictions, files.figures),
        _made(sections.attacks, results),
        _made(sections.matrices, results, files.figures),
        _made(sections.surfaces, surfaces, files.figures),
        _made(sections.confusion, predictions, files.figures, class_names),
        _made(sections.training, metrics, files.figures),
        sections.Section("More adversarial images", pictures=gallery[1:]),
        _made(sections.every_check, checks),
        sections.origin(files, config),
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["data_uri"] = lambda path: (
        f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    )
    # Names may break after a slash or an underscore, so that a narrow screen holds more columns.
    environment.filters["breakable"] = lambda name: markupsafe.Markup(
        re.sub("([/_])", r"\1<wbr>", str(markupsafe.escape(name)))
    )
    title = str(config.get("name") or f"Evaluation: {files.path.resolve().name}")
    page = environment.get_template("report.html.j2").render(
        title=title,
        summary=sections.summary(results),
        answers=answers,
        chart=chart,
        gallery=gallery[0] if gallery else None,
        table=table,
        sections=[part for part in parts if part],
        verdicts=(DETECTED, NOT_DETECTED, NOT_APPLICABLE),
    )
    write_text(files.report, page)
    return files.report


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    return read(path) if path.exists() else None


def _made(make: Callable[..., sections.Section], read: Any, *others: Any) -> sections.Section | None:
    """A section, if the file that it shows was read."""
    return None if read is None else make(read, *others)
