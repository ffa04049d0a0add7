"""One call from models, images and attacks to results, verdicts and a report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from numpy.typing import NDArray

from satm_tf.attacks import Attack, serialize
from satm_tf.bars import begin
from satm_tf.configurable import plural, unknown_name
from satm_tf.evaluation.blocks import fingerprint
from satm_tf.evaluation.folder import ResultsFolder
from satm_tf.evaluation.ladder import ladder_table
from satm_tf.evaluation.leaking import label_leaking
from satm_tf.evaluation.masking import EFFORT, masking_checks
from satm_tf.evaluation.masking.verdicts import DETECTED
from satm_tf.evaluation.names import NetworkName
from satm_tf.evaluation.predictions import Predictions, concatenate
from satm_tf.evaluation.queries import measure_queries
from satm_tf.evaluation.report import write_report
from satm_tf.evaluation.report.answer import answer
from satm_tf.evaluation.report.illustrations import write_galleries, write_surfaces
from satm_tf.evaluation.rungs import CLEAN_RUNG, QUERIES, RUNGS, SAME_SCHEME, TWIN, UNSEEN_RUNG, Group, rung_of
from satm_tf.evaluation.tables import in_schemes, matrix_table, read_results, robustness_table
from satm_tf.evaluation.transfer import check_request, look_through, measure
from satm_tf.models import load_model
from satm_tf.storage import claim, read_csv, read_json, write_text

Model = Any
_ANSWERS = 5  # as many as fit below a picture


@dataclass(frozen=True, eq=False)
class Assessment:
    """The result of `assess`; printing it shows the answer, the tables, label leaking and detected masking.

    Attributes:
        predictions: The class predicted for every image in every cell.
        results: A row for each attack, epsilon, source and target, as `transfer_matrix` describes them; constant
            columns first.
        leaking: As `label_leaking` gives it.
        checks: As `masking_checks` gives it; None if nothing was checked.
        left_out: Sources that crafted nothing, because no gradient reaches their images.
        folder: The folder that everything was written to; None if there is none.
    """

    predictions: Predictions
    results: pd.DataFrame
    leaking: pd.DataFrame
    checks: pd.DataFrame | None = None
    left_out: tuple[str, ...] = ()
    folder: ResultsFolder | None = None

    def report(self) -> Path:
        """Writes `report.html` and its figures into the folder.

        Returns:
            The path of the page.

        Raises:
            ValueError: If there is no folder.
        """
        if self.folder is None:
            raise ValueError("A report is made from files; give `assess` a folder. Received: folder=None")
        return write_report(self.folder.path)

    def __str__(self) -> str:
        parts = [f"{name}: no gradient reaches the images, so it crafts none; see its checks" for name in self.left_out]
        parts.append("\n".join(answer(self.predictions)))
        schemes = in_schemes(self.results)
        table = robustness_table if schemes else matrix_table
        ladder = ladder_table(self.predictions, by="scheme" if schemes else "target")
        if len(ladder) and (schemes or self.results.rung.isin(RUNGS).any()):
            shown = ladder.xs("accuracy", axis="columns", level="value")
            shown = shown.map(_percent).to_string()
            parts.append(f"Accuracy under each attacker's strongest attack on each image\n{shown}")
        attacked = self.results[~self.results.rung.isin([CLEAN_RUNG, QUERIES])]
        for attack, epsilon in dict.fromkeys(zip(attacked.attack, attacked.epsilon, strict=True)):
            for value in ("accuracy", "one_off_accuracy"):
                if self.results[value].notna().any():
                    rates = table(self.results, attack, value, epsilon).map(_percent)
                    heading = f"{value.replace('_', ' ').replace('one off', 'one-off')}, {attack}, epsilon {epsilon:g}"
                    parts.append(f"{heading}\n{rates.to_string()}")
        leaks = self.leaking[self.leaking.leaks]
        found = f"Label leaking (adversarial images classified better than clean ones): {len(leaks) or 'none found'}"
        if len(leaks):
            found += f"\n{leaks.drop(columns='leaks').to_string(index=False)}"
        parts.append(found)
        if self.checks is not None:
            detected = self.checks[self.checks.verdict == DETECTED]
            lines = [f"  {row.network}, {row.check}: {row.explanation}" for row in detected.itertuples()]
            heading = f"Gradient masking: detected by {len(detected)} of {plural(len(self.checks), 'check')}"
            parts.append("\n".join([heading, *lines]))
        return "\n\n".join(parts)


def _percent(rate: float) -> str:
    return "" if pd.isna(rate) else f"{rate:.1%}"


def assess(
    targets: Mapping[str, Model],
    sources: Mapping[str, Model] | None = None,
    *,
    dataset: tf.data.Dataset,
    attacks: Mapping[str, Attack] | Sequence[Attack],
    epsilons: Mapping[str, Sequence[float]] | None = None,
    ordered: bool | None = None,
    queries: Sequence[int] = (),
    query_limit: int = 100,
    check_limit: int = 200,
    check_epsilon: float | None = None,
    checked: Sequence[str] | None = None,
    undefended: Sequence[str] | None = None,
    before: Mapping[str, Model] | None = None,
    groups: Mapping[str, Group] | None = None,
    effort: Mapping[str, int] | None = None,
    class_names: Sequence[str] | None = None,
    account: str = "",
    columns: Mapping[str, Any] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    stage: str = "assess",
) -> Assessment:
    """Measures models on clean images and on each other's adversarial examples, and checks for gradient masking.

    Models are whatever `satm_tf.models.load_model` takes: paths, Keras models or functions, with logits or
    probabilities. A `satm_tf.serving.Endpoint` can be a target. With names of the form `<scheme>/<network>`, and
    `holdout/<network>` for models that no scheme learnt from, you get tables by scheme.

    With a folder, everything is written there (see `ResultsFolder`), and the same call resumes after an interruption:
    finished parts are read, not computed again.

    Args:
        targets: The models to measure, by name.
        sources: The models that craft, by name; the targets if not given. Models whose gradient does not reach the
            images, including endpoints, are left out.
        dataset: Batches of `(images, labels)`: float32 images in [0, 1], integer labels.
        attacks: The attacks, by the name that results show; in a sequence, each has its registered name.
        epsilons: The epsilons of an attack, by its name; an attack that is not listed uses its own.
        ordered: Whether classes have an order, so that one-off accuracy has a meaning. None takes it from the attribute
            `ordered` of the dataset; a dataset without it counts as not ordered.
        queries: The numbers of queries, such as [50, 100, 1000], with which `measure_queries` attacks each target at
            the epsilon of the checks; an empty sequence makes no query attacks.
        query_limit: Number of images for the query attacks, chosen with the seed.
        check_limit: Number of images for the checks, chosen with the seed; 0 skips the checks.
        check_epsilon: The epsilon of the checks, in L-infinity; if not given, the largest of the attacks in that norm.
        checked: Which targets to check; if not given, all but the undefended ones and endpoints.
        undefended: Which targets or sources have no defence, for the checks to compare with; those named
            `holdout/<network>` if not given.
        before: The model of a checked target before its defence, by the target's name.
        groups: What is known of groups of sources, as `rung_of` takes it: sources named `<rung>/<network>` need none.
        effort: The effort of the checks: `steps`, `targets` and `queries` of `masking_checks`.
        class_names: The name of each label, for the report.
        account: What the images are, in words, for the report.
        columns: Columns to put in front of the results, as `DataFrame.assign` takes them, such as `{"fold": 0}`.
        seed: The seed of all random numbers.
        folder: The folder to write; None writes nothing.
        config: The configuration, saved as `config.yaml`. The folder is then reserved for it.
        stage: The label of progress bars.

    Returns:
        The assessment.

    Raises:
        ValueError: If a name is unknown or refers to two models, models and images do not match, the folder holds
            another assessment, or as `measure` and `load_model` do. Nothing is written before that is known.
        FileNotFoundError: If no model exists at a path.
        FloatingPointError: If a target's logits are not finite.

    Example:
        >>> found = satm_tf.assess({"satm/vgg": vgg, "holdout/resnet": resnet}, dataset=test,
        ...                        attacks=[satm_tf.attacks.PGD(epsilon=8 / 255)], folder="results")
        >>> print(found)
        >>> found.report()
        PosixPath('results/report.html')

    Source:
        The protocol of Liao (SATM), Tables 2 to 5; the checks are those of `masking_checks`.
    """
    undefended, checked = check_names(
        targets, sources, undefended=undefended, checked=checked, before=before or {}, groups=groups
    )
    options: dict[str, Any] = dict(effort or {})
    _check_known("option of the checks", options, EFFORT)
    attacks = _by_name(attacks)
    epsilons = {name: [attack.epsilon] for name, attack in attacks.items()} | {**(epsilons or {})}
    shape: Any = tuple(dataset.element_spec[0].shape[1:])
    models, earlier = (
        {name: load_model(model, image_shape=shape) for name, model in given.items()}
        for given in ({**targets, **(sources or {})}, before or {})
    )
    if any(model.remote for model in earlier.values()):
        raise ValueError(f"A model in `before` must not be on a server. Received: {[*earlier]}")
    num_classes = check_request({**models, **earlier}, attacks, epsilons)
    if class_names is not None and num_classes != len(class_names):
        raise ValueError(
            f"The networks distinguish {num_classes} classes, but the images have {len(class_names)}. Received: "
            f"{', '.join(map(str, class_names[:12]))}"
        )
    if check_epsilon is None:
        check_epsilon = max((max(epsilons[name]) for name in attacks if attacks[name].norm == "linf"), default=0.0)
    checked = checked if check_limit and check_epsilon else []
    files = None if folder is None else ResultsFolder(folder)
    images_print = look_through(dataset, True, stage)[1] if files else ""
    if files:
        made_of = {
            "models": {name: fingerprint(model) for name, model in models.items()},
            "before": {name: fingerprint(model) for name, model in earlier.items()},
            "sources": list(sources or targets),
            "images": images_print,
            "attacks": {name: serialize(attack) for name, attack in attacks.items()},
            "epsilons": {name: list(values) for name, values in epsilons.items()},
            "groups": {name: list(group) for name, group in (groups or {}).items()},
            "queries": [sorted(set(queries)), query_limit] if queries else [],
            "checks": [checked, undefended, check_limit, check_epsilon, options],
            "seed": seed,
        }
        _claim(files, made_of, config)
        if account:
            _write_once(files.data, account)
        if class_names is not None:
            _write_once(files.class_names, json.dumps(list(class_names)))

    crafting = {name: models[name] for name in sources or targets if models[name].differentiable}
    left_out = tuple(name for name in sources or targets if name not in crafting and not models[name].remote)
    kept: dict[str, Any] = {"seed": seed, "folder": files.blocks if files else None}
    if files and files.predictions.exists():
        predictions = Predictions.load(files.predictions)
    else:
        begin("measure", expected=2 if queries and check_epsilon else 1)
        shared: dict[str, Any] = {
            "sources": crafting,
            "targets": {name: models[name] for name in targets},
            "attacks": attacks,
            "groups": groups,
            **kept,
        }
        predictions = measure(dataset=dataset, epsilons=epsilons, stage=stage, **shared)
        if queries and check_epsilon:
            asked = measure_queries(
                dataset=_some(dataset, len(predictions.labels), query_limit, seed),
                chosen=_chosen(len(predictions.labels), query_limit, seed),
                labels=predictions.labels,
                epsilon=check_epsilon,
                budgets=queries,
                images_print=images_print,
                stage=f"{stage}: queries",
                **shared,
            )
            predictions = concatenate([predictions, asked])
        if files:
            predictions.save(files.predictions)
    results = predictions.frame(getattr(dataset, "ordered", False) if ordered is None else ordered)
    for place, (column, value) in enumerate((columns or {}).items()):
        results.insert(place, column, value(results) if callable(value) else value)
    if files:
        _write_once(files.results, results.to_csv(index=False))
        # Read back in either case, so that a resumed assessment returns the same frame as an uninterrupted one.
        results = read_results(files.results)
        if crafting:
            answering = _one_of_each_scheme(targets)
            # What anybody can craft, if some network represents such an attacker.
            unseen = [name for name in crafting if rung_of(name, answering[0], groups) == UNSEEN_RUNG]
            source = [*unseen, *crafting][0]
            write_galleries(
                files.gallery,
                attacks,
                source=source,
                network=models[source],
                dataset=dataset,
                targets={NetworkName.parse(name).scheme or name: models[name] for name in answering},
                class_names=class_names or list(map(str, range(num_classes))),
            )

    checks = None
    if files and checked and files.checks.exists():
        checks = read_csv(files.checks, keep_default_na=False)
    elif checked:
        some = _some(dataset, len(predictions.labels), check_limit, seed)
        # One for gradients, one for the losses of each network, one for the other attacks on each checked network.
        begin("check", expected=1 + 2 * len(checked) + len(undefended) + len(earlier))
        checks = masking_checks(
            {name: models[name] for name in checked},
            dataset=some,
            epsilon=check_epsilon,
            undefended={name: models[name] for name in undefended},
            before=earlier,
            stage=f"{stage}: checks",
            **kept,
            **options,
        )
        if files:
            shown = {name: models[name] for name in targets if name in {*checked, *undefended}}
            write_surfaces(files.surfaces, shown, dataset=some, epsilon=check_epsilon, seed=seed)
            write_text(files.checks, checks.to_csv(index=False))
    return Assessment(predictions, results, label_leaking(predictions), checks, left_out, files)


def check_names(
    targets: Mapping[str, Any],
    sources: Mapping[str, Any] | None,
    *,
    undefended: Sequence[str] | None = None,
    checked: Sequence[str] | None = None,
    before: Iterable[str] = (),
    groups: Mapping[str, Group] | None = None,
) -> tuple[list[str], list[str]]:
    """Returns the undefended networks and those to check, after checking that every name refers to a network.

    It takes what `assess` takes; of the networks, only names and equality matter.

    Raises:
        ValueError: If a name is unknown, or refers to two networks.
    """
    sources = sources or {}
    named = list({**targets, **sources})
    for name in set(targets) & set(sources):
        if targets[name] != sources[name]:
            raise ValueError(
                f"One name, {name!r}, must refer to one network. Received: {targets[name]} and {sources[name]}"
            )
    for (name, source), (target, model) in itertools.product(sources.items(), targets.items()):
        if source == model and rung_of(name, target, groups) in (SAME_SCHEME, TWIN):
            raise ValueError(
                f"A surrogate must be an attacker's own model, not a target or its partner. Received: {name!r}, "
                f"which is {target!r}"
            )
    _check_known("network", [*(undefended or []), *before], named)
    remote = [name for name in targets if getattr(targets[name], "remote", False)]
    for name, source in sources.items():
        if getattr(source, "remote", False):
            raise ValueError(
                "A model on a server can only be a target: a server returns no gradients, so crafting examples needs "
                f"the model itself. Received: {name!r} as a source, at {source.name}"
            )
    for name in set(remote) & set(undefended or []):
        raise ValueError(f"The checks cannot compare with a model on a server. Received: undefended {name!r}")
    if undefended is None:
        undefended = [name for name in named if NetworkName.parse(name).unseen and name not in remote]
    available = [name for name in targets if name not in {*undefended, *remote}]
    chosen = available if checked is None else list(checked)
    _check_known("network to check", chosen, available)
    _check_known("network to check", before, chosen)
    return list(undefended), chosen


def _check_known(kind: str, names: Iterable[str], available: Iterable[str]) -> None:
    for name in names:
        if name not in available:
            raise unknown_name(kind, name, available)


def _by_name(attacks: Mapping[str, Attack] | Sequence[Attack]) -> dict[str, Attack]:
    if isinstance(attacks, Mapping):
        return dict(attacks)
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"Several attacks have the same name; give a mapping with different names. Received: {names}")
    return dict(zip(names, attacks, strict=True))


def _claim(files: ResultsFolder, made_of: Mapping[str, Any], config: Mapping[str, Any] | None) -> None:
    """Claims the folder for this assessment, or confirms the earlier claim."""
    found = read_json(files.assessment) if files.assessment.exists() else made_of
    differing = [key for key in made_of if found.get(key) != made_of[key]]
    if differing:
        raise ValueError(
            f"{files} holds another assessment; choose another folder, or delete it. "
            f"Received: other values of {', '.join(differing)}"
        )
    if config is not None:
        claim(files.path, config)
    _write_once(files.assessment, json.dumps(made_of, indent=2))


def _write_once(path: Path, text: str) -> None:
    if not path.exists():
        write_text(path, text)


def _one_of_each_scheme(targets: Iterable[str]) -> list[str]:
    """Of each scheme, the network with the first one's architecture; without schemes, the first few networks."""
    names = [name for name in map(NetworkName.parse, targets) if not name.unseen]
    if not names or not names[0].scheme:
        return list(targets)[:_ANSWERS]
    same = [str(name) for name in names if name.network == names[0].network]
    return [same[0], *same[1:][1 - _ANSWERS :]]


def _chosen(count: int, limit: int, seed: int) -> NDArray[np.bool_]:
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(seed).permutation(count)[:limit]] = True
    return chosen


def _some(dataset: tf.data.Dataset, count: int, limit: int, seed: int) -> tf.data.Dataset:
    """Selects some of `count` images by the seed, in their order and in batches of the same size."""
    if limit >= count:
        return dataset
    chosen = _chosen(count, limit, seed)
    rows, start, size = [], 0, 0
    for images, labels in dataset:
        mask = chosen[start : start + len(labels)]
        rows.append((images.numpy()[mask], labels.numpy()[mask]))
        start, size = start + len(labels), max(size, len(labels))
    return tf.data.Dataset.from_tensor_slices(tuple(map(np.concatenate, zip(*rows, strict=True)))).batch(size)
