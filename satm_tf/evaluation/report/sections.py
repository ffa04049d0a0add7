"""The sections of a report, each made from files of the folder."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from satm_tf.configurable import plural
from satm_tf.evaluation.folder import ResultsFolder
from satm_tf.evaluation.ladder import WORST, compare_ladder, ladder_table
from satm_tf.evaluation.leaking import label_leaking
from satm_tf.evaluation.masking.verdicts import DETECTED, NOT_APPLICABLE
from satm_tf.evaluation.predictions import CLEAN, Cell, Predictions
from satm_tf.evaluation.report import figures
from satm_tf.evaluation.report.answer import LABELS, UNDEFENDED, accuracies
from satm_tf.evaluation.report.figures import Picture
from satm_tf.evaluation.rungs import CLEAN_RUNG
from satm_tf.evaluation.tables import (
    HOLDOUT,
    compare_schemes,
    in_schemes,
    matrix_table,
    robustness_table,
    strength_table,
    with_uncertainty,
    with_views,
)
from satm_tf.storage import read_json

_MOST_CLASSES = 20
_MOST_BARS = 7
_WORDS = {"accuracy": "accuracy", "one_off_accuracy": "one-off accuracy"}


@dataclass
class Table:
    """A table of texts, of which the `labels` columns at the left are row headers."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    labels: int = 1


@dataclass
class Section:
    """A part of the page, which is left out if it has only a title; `texts` are preformatted, each with a heading."""

    title: str
    lead: str = ""
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lead or self.tables or self.pictures or self.texts)


def summary(results: pd.DataFrame | None) -> str:
    """What was measured on how many images, and how to read the figures."""
    if results is None:
        return "No network has been measured yet."
    folds = results.fold.nunique() if "fold" in results else 0
    images = " to ".join(f"{count:,}" for count in sorted({results.images.min(), results.images.max()}))
    measured = (
        f"{plural(results.target.nunique(), 'network')}, measured on {images} image{'' if images == '1' else 's'}"
    )
    if folds > 1:
        return f"{measured} of each of {folds} folds. ± is the standard deviation over folds or seeds."
    return f"{measured}. Below each figure is its 95 % interval."


def ladder(predictions: Predictions, drawings: Path) -> tuple[Picture, Table]:
    """The chart and the table that a report begins with: each scheme on clean images and under each attacker."""
    table: Any = ladder_table(predictions, by="scheme")
    texts = pd.DataFrame(
        {
            LABELS[column]: [
                "" if pd.isna(row.accuracy) else f"{row.accuracy:.1%}\n{100 * row.low:.0f} to {100 * row.high:.0f}"
                for row in table[column].itertuples()
            ]
            for column in dict.fromkeys(table.columns.get_level_values("rung"))
        },
        index=table.index,
    )
    caption = "Accuracy on clean images and under each attacker, with 95 % intervals"
    kept = accuracies(predictions)
    shown = list(kept)
    if len(shown) > _MOST_BARS:
        best = sorted(kept, key=lambda name: (name in UNDEFENDED, kept[name].get(WORST, 0.0)), reverse=True)
        shown = [name for name in shown if name in best[:_MOST_BARS]]
        caption += f"; the {len(shown)} of {len(kept)} schemes with the highest accuracy under the worst attacker"
    picture = figures.ladder(table.loc[shown], LABELS, drawings / "ladder.png", caption)
    return picture, _table(texts, "Accuracy with its 95 % interval, in percent")


def price(predictions: Predictions, drawings: Path) -> Section:
    """Accuracy on clean images against accuracy under the worst attacker, if there are schemes to compare."""
    kept = accuracies(predictions)
    points = {name: (own[CLEAN_RUNG], own[WORST]) for name, own in kept.items() if {CLEAN_RUNG, WORST} <= set(own)}
    if len(points) < 2:
        return Section("")
    table = pd.DataFrame.from_dict(points, orient="index", columns=[CLEAN_RUNG, WORST])
    names = {"x": "accuracy on clean images", "y": "under the worst of all attackers"}
    picture = figures.scatter(table, drawings / "price.png", "Each scheme, mean over its networks", **names)
    lead = "The better a defence, the further it is up and to the right."
    return Section("Clean against robust", lead, pictures=[picture])


def verdicts(checks: pd.DataFrame | None, results: pd.DataFrame | None, predictions: Predictions | None) -> Section:
    """The masking that was detected: by the checks, and as label leaking in cells of the transfer matrix."""
    section = Section("Is it masking?")
    sentences = []
    if checks is not None:
        detected = checks[checks.verdict == DETECTED]
        where = f", on {', '.join(dict.fromkeys(detected.network))}" if len(detected) else ""
        sentences.append(
            f"Masking was detected by {len(detected)} of {len(checks)} checks{where}. "
            "A network on which none was detected is not necessarily robust."
        )
        # The accuracy under AutoAttack is a figure to quote; the verdict next to it is about masking only.
        left = [json.loads(text).get("auto_attack") for text in checks.figures]
        words = [
            verdict if share is None else f"{verdict}\n{share:.1%} accuracy"
            for verdict, share in zip(checks.verdict, left, strict=True)
        ]
        grid = checks.assign(verdict=words).pivot_table("verdict", "check", "network", aggfunc="first", sort=False)
        section.tables.append(_table(grid.fillna(NOT_APPLICABLE), "Each check of each network"))
        if len(detected):
            columns = ["network", "check", "explanation"]
            section.tables.append(_table(detected[columns], "What was detected", labels=2))
    if predictions is not None and CLEAN in set(predictions.cells.attack):
        leaking = label_leaking(predictions).query("leaks")
        if leaking.empty:
            sentences.append(
                "Label leaking in the transfer matrix: none; no cell has adversarial images that are classified better "
                "than clean ones."
            )
            if checks is not None and "label leaking" in set(checks[checks.verdict == DETECTED].check):
                sentences.append("The checks, which run their own attacks, do find label leaking.")
        else:
            sentences.append(
                f"Label leaking in the transfer matrix: in {plural(len(leaking), 'cell')} adversarial images are "
                "classified better than clean ones. This gain does not carry over to unseen models."
            )
            shown = leaking[[*Cell._fields, "accuracy", "clean_accuracy", "p_value"]].assign(
                epsilon=leaking.epsilon.map("{:g}".format),
                accuracy=leaking.accuracy.map("{:.1%}".format),
                clean_accuracy=leaking.clean_accuracy.map("{:.1%}".format),
                p_value=leaking.p_value.map(_p_value),
            )
            section.tables.append(_table(shown, "Where labels leak in the transfer matrix", labels=4))
    elif results is not None:
        sentences.append("Label leaking was not tested, because the test needs predictions.npz with clean images.")
    section.lead = " ".join(sentences)
    return section


def attacks(results: pd.DataFrame) -> Section:
    """The paper's tables if networks are named by scheme; otherwise the matrix."""
    ordered = results["one_off_accuracy"].notna().any()
    one_off = ", and one-off accuracy 1-off" if ordered else ""
    section = Section("Accuracy", f"The paper calls accuracy the classification rate{one_off}.")

    def printed(view: Any, attack: str, epsilon: float, value: str) -> pd.DataFrame:
        return with_uncertainty(results, lambda rows, column: view(rows, attack, column, epsilon), value)

    for value in ("accuracy", "one_off_accuracy"):
        if results[value].isna().all():
            continue
        for attack, epsilon in _attacks(results):
            here = f"{_WORDS[value]}, {attack}, epsilon {epsilon:g}"
            views: list[tuple[Any, str]] = [(matrix_table, f"{here}: a row for each source, a column for each target")]
            if in_schemes(results):
                views = [
                    (robustness_table, here),
                    (strength_table, f"{here}: the networks' own examples on unseen models"),
                ]
            for view, caption in views:
                table = printed(view, attack, epsilon, value)
                if table.size:
                    # Two lines make the columns half as wide.
                    two_lines = {r" ± (.*) \((.*)\)$": r"\n± \1, \2", r" \((.*)\)$": r"\n\1"}
                    table = table.replace(two_lines, regex=True)
                    section.tables.append(_table(table, caption[0].upper() + caption[1:]))
    return section


def _related(results: pd.DataFrame) -> pd.DataFrame:
    """If networks are named by scheme, the rows in which a target meets its own scheme or an unseen model."""
    return with_views(results) if in_schemes(results) else results


def _attacks(results: pd.DataFrame) -> list[tuple[str, float]]:
    rows = results[results.attack != CLEAN]
    return list(dict.fromkeys(zip(rows.attack, rows.epsilon, strict=True)))


def matrices(results: pd.DataFrame, drawings: Path) -> Section:
    """A heat map for each attack and epsilon, and curves if there are several epsilons."""
    if not _attacks(results):
        return Section("")
    section = Section("Transfer matrix", "Accuracy in percent; white boxes are framed.")
    for attack, epsilon in _attacks(results):
        path, table = _png(drawings, f"matrix {attack} {epsilon:g}"), matrix_table(results, attack, epsilon=epsilon)
        section.pictures.append(figures.heat_map(table, path, f"{attack}, epsilon {epsilon:g}"))
    related = _related(results)
    for (target, attack), rows in related[related.attack != CLEAN].groupby(["target", "attack"], sort=False):
        if rows.epsilon.nunique() > 1:
            curves = rows.pivot_table(index="epsilon", columns="source", values="accuracy", sort=False)
            curves.loc[0.0] = related[(related.target == target) & (related.attack == CLEAN)].accuracy.mean()
            curves = curves.sort_index().rename(columns=lambda name: f"from {name}")
            path = _png(drawings, f"epsilons {attack} {target}")
            caption = f"{target} under {attack}, at every epsilon"
            section.pictures.append(figures.lines(curves, path, caption, x="epsilon", y="accuracy", rate=True))
    return section


def comparisons(predictions: Predictions) -> Section:
    """Every pair of schemes on each rung, and every scheme against the first under each attack."""
    section = Section("Schemes compared on the same images")
    if not in_schemes(predictions.cells):
        return section
    cells = with_views(predictions.cells)
    schemes = list(dict.fromkeys(cells.scheme))
    networks = {scheme: set(cells[cells.scheme == scheme].network) for scheme in schemes}
    pairs = [
        {
            "schemes": f"{first} → {second}",
            "network": row["network"],
            "attacker": LABELS[row["rung"]],
            "accuracy": f"{row[first]:.1%} → {row[second]:.1%}",
            "difference": _interval(row),
            "p": _p_value(row["p_value"]),
        }
        for first, second in itertools.combinations(schemes, 2)
        if networks[first] & networks[second]
        for row in compare_ladder(predictions, first, second).to_dict("records")
    ]
    if pairs:
        caption = "Each pair of schemes under each attacker: difference in points, and McNemar's exact test"
        section.tables.append(_table(pd.DataFrame(pairs), caption, labels=3))
    for second in schemes[1:]:
        if not networks[schemes[0]] & networks[second]:
            continue
        rows = [
            {
                "network": row["network"],
                "attack": f"{row['attack']}, {row['epsilon']:g}" if row["epsilon"] else row["attack"],
                "examples of": _crafted_by(row),
                schemes[0]: f"{row[schemes[0]]:.1%}",
                second: f"{row[second]:.1%}",
                "difference": _interval(row),
                "p": _p_value(row["p_value"]),
            }
            for row in compare_schemes(predictions, schemes[0], second).to_dict("records")
        ]
        caption = f"{second} against {schemes[0]}: difference in points, and McNemar's exact test"
        section.tables.append(_table(pd.DataFrame(rows), caption, labels=3))
    return section


def surfaces(surfaces: pd.DataFrame, drawings: Path) -> Section:
    """A surface for each network."""
    section = Section("The loss around images", "If a network does not mask its gradient, the loss rises to the right.")
    for name, rows in surfaces.groupby("network", sort=False):
        path = _png(drawings, f"surface {name}")
        section.pictures.append(figures.surface(rows.drop(columns="network"), path, str(name)))
    return section


def confusion(predictions: Predictions, drawings: Path, names: list[str]) -> Section:
    """For each target, on clean images and under its strongest transfer attack; left out if there are many classes."""
    if predictions.num_classes > _MOST_CLASSES:
        return Section("")
    section = Section("Confusion matrices", "On clean images, and under the strongest transfer attack.")
    classes = names or [str(index) for index in range(predictions.num_classes)]
    frame = _related(predictions.frame())
    for target, rows in frame.groupby("target", sort=False):
        black_box = rows[(rows.attack != CLEAN) & (rows.source != target)]
        worst = black_box.sort_values("accuracy").head(1)
        for row in pd.concat([rows[rows.attack == CLEAN], worst]).to_dict("records"):
            attack, epsilon, source = row["attack"], row["epsilon"], row["source"]
            how = f"{attack}, epsilon {epsilon:g}, from {source}" if source else "clean images"
            matrix = predictions.confusion(attack, epsilon, source, str(target))
            path = _png(drawings, f"confusion {target} {attack} {source}")
            section.pictures.append(figures.confusion(matrix, classes, path, f"{target}: {how}"))
    return section


def training(metrics: pd.DataFrame, drawings: Path) -> Section:
    """Figures 3 and 4 of the paper for every stage: losses, and clean and adversarial accuracy."""
    section = Section("Training")
    for stage, rows in metrics.groupby("stage", sort=False) if "stage" in metrics else [("training", metrics)]:
        history = rows.dropna(axis=1, how="all")
        history = history.set_index("epoch") if "epoch" in history else history
        losses = history.filter(["loss", "val_loss"]).rename(columns={"loss": "training", "val_loss": "validation"})
        if losses.size:
            path = _png(drawings, f"loss {stage}")
            section.pictures.append(figures.lines(losses, path, f"{stage}: loss", x="epoch", y="loss"))
        # Validation if there is any: accuracy on training images says little.
        which, curves = "validation", history.filter(regex="^val_(.*_)?accuracy$")
        if not curves.size:
            which, curves = "training", history.filter(regex="_accuracy$")
        if curves.size:
            parts = curves.columns.str.extract("^(?:val_)?(?P<network>.*?)(?P<attacked>_adversarial)?(?:_accuracy)?$")
            names = (parts.network + parts.attacked.notna().map({True: ", adversarial", False: ", clean"})).tolist()
            section.pictures.append(
                figures.lines(
                    curves.set_axis(names, axis="columns"),
                    _png(drawings, f"accuracy {stage}"),
                    f"{stage}: accuracy on {which} images",
                    x="epoch",
                    y="accuracy",
                    rate=True,
                    dashed=[name for name in names if name.endswith(", adversarial")],
                    groups=dict(zip(names, pd.factorize(parts.network)[0], strict=True)),
                )
            )
    return section


def gallery(files: ResultsFolder) -> list[Picture]:
    """The pictures in the gallery folder."""
    shows = "Each row shows a clean image, its adversarial image and their magnified difference"
    return [Picture(path, f"{shows}: {path.stem}.", path.stem) for path in sorted(files.gallery.glob("[!.]*.png"))]


def every_check(checks: pd.DataFrame) -> Section:
    """All verdicts with their explanations and figures."""
    figures_of = [", ".join(f"{name} {x:.4g}" for name, x in json.loads(text).items()) for text in checks.figures]
    shown = checks[["network", "check", "verdict"]].assign(explanation=checks.explanation + "\n" + figures_of)
    return Section("Every check, with its figures", tables=[_table(shown, "", labels=2)])


def origin(files: ResultsFolder, config: dict[str, Any]) -> Section:
    """Command, data, configuration and environment."""
    section = Section("How it was made")
    if config:
        command, folder = ("evaluate", "output") if "targets" in config else ("train", "run_dir")
        command = f"python -m satm_tf.{command} --config config.yaml --{folder} NEW_FOLDER"
        section.texts.append(("To reproduce it", command))
    for heading, path in (("Data", files.data), ("Configuration", files.config)):
        if path.exists():
            section.texts.append((heading, path.read_text(encoding="utf-8").rstrip()))
    if files.environment.exists():
        environment = read_json(files.environment).items()
        lines = [f"{key}: {', '.join(value) if isinstance(value, list) else value}" for key, value in environment]
        section.texts.append(("Environment", "\n".join(lines)))
    return section


def _table(frame: pd.DataFrame, caption: str, labels: int = 0) -> Table:
    """A frame as text; its index, if named, becomes the row headers."""
    named = [name for name in frame.index.names if name is not None]
    flat = frame.reset_index() if named else frame
    head = [str(name).replace("_", " ") if name in named else str(name) for name in flat.columns]
    return Table(caption, head, flat.astype(str).to_numpy().tolist(), labels or len(named) or 1)


def _interval(row: Mapping[Any, Any]) -> str:
    return "{:+.1f}\n{:+.1f} to {:+.1f}".format(*(100 * row[name] for name in ("difference", "low", "high")))


def _crafted_by(row: Mapping[Any, Any]) -> str:
    """Whose examples a row of `compare_schemes` is about, in a few words."""
    if row["view"] == HOLDOUT:
        return row["source_network"]
    return f"{row['source_group']}/{row['source_network']}" if row["source_group"] else row["view"]


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _png(drawings: Path, name: str) -> Path:
    name = "".join(character if character.isalnum() or character in "+." else "_" for character in name)
    return drawings / f"{name}.png"
