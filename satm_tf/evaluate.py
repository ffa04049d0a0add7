"""python -m satm_tf.evaluate: whose examples fool whom, and what is only hidden.

usage: python -m satm_tf.evaluate --targets NETWORKS --images FOLDER
                                  --output FOLDER [--OPTION VALUE ...]

Networks are {"name": "file.keras", ...}, or folders of SavedModels. Tables,
checks and a report are written. A command that was stopped goes on when it is
given again.

options that people set:
  --sources NETWORKS    who crafts, where that is not the targets themselves
  --attacks ATTACKS     {"pgd": {"steps": 20}, ...}; fgsm and pgd if not given
  --epsilon X           or [X, Y, ...], of images in [0, 1]; 16/256 is 0.0625
  --format FORMAT       folder, adience, idx, table, imagenet
  --data OPTIONS        of the format, such as {"fold": 1}
  --limit N             the most images; 1000
  --check_limit N       images for the checks; 200, and 0 for no checks
  --config FILE         all of this from a YAML file

other options:
  --print_config   the options as YAML, for --config FILE
  --help-all       every option;  --debug  the traceback of an error

example: python -m satm_tf.evaluate --images pictures --output results \\
  --targets '{"a": "a.keras", "b": "exported_models/b"}'
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import pandas as pd
import tensorflow as tf

from satm_tf import attacks as attack_room
from satm_tf import command_line
from satm_tf import data as data_room
from satm_tf.configurable import unknown_name
from satm_tf.evaluation import gradient_reaches, masking_checks, measure
from satm_tf.evaluation.masking import EFFORT
from satm_tf.evaluation.report import write_report
from satm_tf.evaluation.report.illustrations import write_galleries, write_surfaces
from satm_tf.evaluation.tables import HOLDOUT, matrix_table
from satm_tf.experiment.config import make_attack
from satm_tf.models import LoadedModel, load_model
from satm_tf.storage import claim, write_text

_LOADERS: dict[str, Callable[..., data_room.ImageData]] = {
    "folder": data_room.folder.load,
    "adience": data_room.adience.load,
    "idx": data_room.idx.load,
    "table": data_room.tables.load,
    "imagenet": data_room.imagenet.load,
}
_EPSILON = 16 / 256


def evaluate(
    *,
    targets: dict[str, str],
    images: str,
    output: str,
    sources: dict[str, str] | None = None,
    attacks: dict[str, dict[str, Any]] | None = None,
    epsilon: list[float] | None = None,
    format: Literal["folder", "adience", "idx", "table", "imagenet"] = "folder",
    data: dict[str, Any] | None = None,
    split: Literal["train", "validation", "test"] = "test",
    limit: int | None = 1000,
    image_size: int | None = None,
    check_limit: int = 200,
    check_options: dict[str, int] | None = None,
    undefended: list[str] | None = None,
    before: dict[str, str] | None = None,
    batch_size: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Measures networks on clean images and on each other's adversarial examples, and checks what they hide.

    Writes results.csv (a row for each attack, epsilon, source and target), checks.csv (a row for each check and
    network), predictions.npz (every image's), report.html and the figures in it. A command that was stopped goes on
    where it was when it is given again.

    Args:
        targets: The networks to measure, by name: .keras files, or folders of SavedModels; behind a # may stand the
            output to use. Name them <scheme>/<network>, and holdout/<network>, to have the paper's tables too.
        images: The folder of the images.
        output: The folder to write.
        sources: The networks that craft, by name; the targets if none.
        attacks: The attacks by name, with their options: {"pgd": {"steps": 20}, "ll": {"name": "step_ll"}}; fgsm and
            pgd if none. An attack with an epsilon of its own has only that.
        epsilon: One or several, in units of images in [0, 1]; 16/256 if none.
        format: What the folder holds.
        data: Options of the format's loader, such as {"fold": 1} for adience or {"table": "faces.csv"} for table.
        split: Which split of the data set.
        limit: The most images; null for all.
        image_size: Height and width; null asks the networks.
        check_limit: On how many of the images the checks are made; 0 makes none.
        check_options: How hard the checks try: steps and targets of the iterative attacks, queries of those without a
            gradient. The standard AutoAttack is {"steps": 100, "targets": 9, "queries": 5000}.
        undefended: Which networks nobody has defended, for the checks to compare with; those named holdout/... if none.
        before: For a target, which network it was before its defence.
        batch_size: Images in a batch.
        seed: What all random numbers follow from.

    Returns:
        The frame of results.csv.

    Raises:
        ValueError: If something named is unknown, or networks and images do not go together.
        FileNotFoundError: If a file is missing.
        FloatingPointError: If a network's logits are not numbers.
    """
    folder = Path(output)
    arguments = {name: value for name, value in locals().items() if name not in ("output", "folder")}
    configured, epsilons = _configure(attacks or {"fgsm": {}, "pgd": {}}, epsilon or [_EPSILON])
    paths = {**targets, **(sources or {})}
    _check_names(targets, sources or {}, undefended, before or {})
    strangers = [name for name in paths if name.startswith(f"{HOLDOUT}/")] if undefended is None else undefended
    checked = [name for name in targets if name not in strangers]
    for name in before or {}:
        if name not in checked:
            raise unknown_name("network to check", name, checked)
    effort: dict[str, Any] = dict(check_options or {})
    for name in effort:
        if name not in EFFORT:
            raise unknown_name("option of the checks", name, EFFORT)
    networks = {name: load_model(path, image_size=image_size) for name, path in paths.items()}
    whole = _load_data(format, images, data or {})
    shape = _common_shape(networks, whole)
    claim(folder, arguments)
    examples = getattr(whole, split)
    examples = examples if limit is None else examples.limit(limit, seed)
    account = f"{whole.account}\n{len(examples):,} images of the {split} split were measured"
    write_text(folder / "data.txt", account)
    write_text(folder / "class_names.json", json.dumps(whole.class_names))
    print(account)

    batches = _batches(examples, shape, batch_size)
    crafting = {name: networks[name] for name in sources or targets}
    deaf = [name for name, network in crafting.items() if not gradient_reaches(network, next(iter(batches))[0])]
    for name in deaf:
        print(f"{name}: no gradient reaches the images, so it crafts none; see its checks")
        del crafting[name]
    shared: dict[str, Any] = {"seed": seed, "folder": folder / "blocks"}
    predictions = measure(
        sources=crafting,
        targets={name: networks[name] for name in targets},
        dataset=batches,
        attacks=configured,
        epsilons=epsilons,
        **shared,
    )
    predictions.save(folder / "predictions.npz")
    results = predictions.frame(whole.ordered)
    write_text(folder / "results.csv", results.to_csv(index=False))
    _print(results)
    if crafting:
        source, network = next(iter(crafting.items()))
        write_galleries(
            folder, configured, source=source, network=network, dataset=batches, class_names=whole.class_names
        )

    if check_limit and checked:
        some = _batches(examples.limit(check_limit, seed), shape, batch_size)
        radius = max(epsilon or [_EPSILON])
        checks = masking_checks(
            {name: networks[name] for name in checked},
            dataset=some,
            epsilon=radius,
            undefended={name: networks[name] for name in strangers},
            before={name: networks[earlier] for name, earlier in (before or {}).items()},
            **shared,
            **effort,
        )
        write_text(folder / "checks.csv", checks.to_csv(index=False))
        measured = {name: networks[name] for name in targets}
        write_surfaces(folder, measured, dataset=some, epsilon=radius, seed=seed)
        failed = checks[checks.verdict == "fail"]
        print(f"\n{len(failed)} of {len(checks)} checks fail{':' if len(failed) else ''}")
        for row in failed.itertuples():
            print(f"  {row.network}, {row.check}: {row.explanation}")
    print(f"\nwritten: {write_report(folder)}")
    return results


def _configure(
    attacks: Mapping[str, Mapping[str, Any]], epsilon: list[float]
) -> tuple[dict[str, attack_room.Attack], dict[str, list[float]]]:
    configured: dict[str, attack_room.Attack] = {}
    epsilons: dict[str, list[float]] = {}
    for name, options in attacks.items():
        configured[name] = make_attack({"name": name, **options}, max(epsilon))
        epsilons[name] = [configured[name].epsilon] if "epsilon" in options else sorted(epsilon)
    return configured, epsilons


def _check_names(
    targets: Mapping[str, str], sources: Mapping[str, str], undefended: list[str] | None, before: Mapping[str, str]
) -> None:
    named = {*targets, *sources}
    for name in [*(undefended or []), *before, *before.values()]:
        if name not in named:
            raise unknown_name("network", name, named)
    for name in set(targets) & set(sources):
        if targets[name] != sources[name]:
            raise ValueError(
                f"One name, {name!r}, must mean one network. Received: {targets[name]} and {sources[name]}"
            )


def _load_data(format: str, root: str, options: dict[str, Any]) -> data_room.ImageData:
    load = _LOADERS[format]
    available = [name for name in inspect.signature(load).parameters if name != "root"]
    for name in options:
        if name not in available:
            raise unknown_name(f"option of the format {format!r}", name, available)
    parameters = inspect.signature(load).parameters.values()
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in ("root", *options)]
    if missing:
        raise ValueError(f"Data of the format {format!r} needs --data.{missing[0]}. Received: {options}")
    return load(root=root, **options)


def _common_shape(networks: Mapping[str, LoadedModel], images: data_room.ImageData) -> tuple[int, int, int]:
    for fact in ("image_shape", "num_classes"):
        values = {name: getattr(network, fact) for name, network in networks.items()}
        if len(set(values.values())) > 1:
            raise ValueError(f"Networks that meet must have the same {fact}. Received: {values}")
    network = next(iter(networks.values()))
    if network.num_classes != images.num_classes:
        raise ValueError(
            f"The networks tell {network.num_classes} classes apart, and the images are of {images.num_classes}. "
            f"Received: {', '.join(map(str, images.class_names[:12]))}"
        )
    return network.image_shape


def _batches(examples: data_room.Examples, shape: tuple[int, int, int], batch_size: int) -> tf.data.Dataset:
    batches = data_room.batches(examples, image_size=shape[:2], batch_size=batch_size, cache=False)
    if shape[2] == 3:
        return batches
    # The loaders give three channels; a grey image has three equal ones.
    return batches.map(lambda images, labels: (tf.reduce_mean(images, -1, keepdims=True), labels))


def _print(results: pd.DataFrame) -> None:
    for (attack, epsilon), _ in results[results.attack != "clean"].groupby(["attack", "epsilon"], sort=False):
        print(f"\naccuracy, {attack}, epsilon {epsilon:g}")
        print(matrix_table(results, attack, epsilon=epsilon).map("{:.1%}".format).to_string())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, which is 0 whatever the verdicts."""
    return command_line.run(
        lambda given: jsonargparse.CLI(evaluate, args=given, as_positional=False, prog="python -m satm_tf.evaluate"),
        arguments,
        page=__doc__,
        goes_on=True,
    )


if __name__ == "__main__":
    sys.exit(main())
