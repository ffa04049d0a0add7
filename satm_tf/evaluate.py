"""satm-tf evaluate: whose adversarial examples fool whom, and what a network only hides."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from satm_tf import command_line
from satm_tf import data as data_room
from satm_tf.configurable import look_up, plural
from satm_tf.data import formats
from satm_tf.evaluation import Assessment, assess
from satm_tf.evaluation.assessment import check_names
from satm_tf.experiment.config import make_attack
from satm_tf.models import LoadedModel, load_model

_EPSILON = 16 / 256
_FEW = 200


def evaluate(
    *,
    targets: dict[str, str],
    images: str,
    output: str,
    sources: dict[str, str] | None = None,
    attacks: dict[str, dict[str, Any]] | None = None,
    epsilon: list[float] | None = None,
    format: str = "folder",
    data: dict[str, Any] | None = None,
    split: Literal["train", "validation", "test"] | None = None,
    limit: int | None = None,
    image_size: int | None = None,
    queries: list[int] | None = None,
    query_limit: int = 100,
    input_range: dict[str, list[float]] | None = None,
    check_limit: int = 200,
    check_options: dict[str, int] | None = None,
    undefended: list[str] | None = None,
    before: dict[str, str] | None = None,
    batch_size: int = 50,
    seed: int = 0,
) -> Assessment:
    """Measures networks on clean images and on each other's adversarial examples, and checks what they hide.

    Writes results.csv (a row for each attack, epsilon, source and target), checks.csv (a row for each check and
    network), predictions.npz (the class predicted for every image), report.html and the figures in it. Re-run the same
    command to resume after an interruption.

    Args:
        targets: The networks to measure, by name: .keras, .onnx or .tflite files, or folders of SavedModels; behind a #
            may stand the output to use. Names of the form <scheme>/<network>, and holdout/<network>, give the paper's
            tables too.
        images: The folder of the images.
        output: The folder to write.
        sources: The networks that craft, by name; the targets if none. The name <rung>/<network> says which attacker
            has it: unseen, public_weights, start (of the target of that network name), defended, same_scheme or twin.
        attacks: The attacks by name, with their options: {"pgd": {"steps": 20}, "ll": {"name": "step_ll"}}; fgsm and
            pgd if none. An attack with an epsilon of its own has only that.
        epsilon: One or several, in units of images in [0, 1]; 16/256 if none.
        format: What the folder holds: folder (one sub-folder a class), adience, utkface, idx, table, imagenet or
            synthetic_faces.
        data: Options of the format's loader, such as {"fold": 1} for adience or {"table": "faces.csv"} for table.
        split: Which split of the data set. Null takes the test split; of a folder that has no split of its own, every
            image.
        limit: The most images; null for all.
        image_size: Height and width; null asks the networks.
        queries: Numbers of queries, such as 50 100 1000, with which each target is attacked by questions alone; none if
            not given.
        query_limit: On how many of the images.
        input_range: The lowest and the highest value of a pixel that a network takes, by the network's name, such as
            {"mine": [0, 255]}; [0, 1] for the others.
        check_limit: On how many of the images the checks are made; 0 makes none.
        check_options: How hard the checks try: steps and targets of the iterative attacks, queries of those without a
            gradient. The standard AutoAttack is {"steps": 100, "targets": 9, "queries": 5000}.
        undefended: Which networks have no defence, for the checks to compare with; those named holdout/... if none.
        before: For a target, which network it was before its defence.
        batch_size: Images in a batch.
        seed: What all random numbers follow from.

    Returns:
        The assessment.

    Raises:
        ValueError: If something named is unknown, or networks and images do not go together.
        FileNotFoundError: If a file is missing.
        FloatingPointError: If a network's logits are not numbers.
    """
    config = {name: value for name, value in locals().items() if name != "output"}
    sources, before, radii = sources or {}, before or {}, sorted(epsilon or [_EPSILON])
    configured = {
        name: make_attack({"name": name, **options}, radii[-1])
        for name, options in (attacks or {"fgsm": {}, "pgd": {}}).items()
    }
    paths = {**targets, **sources}
    check_names(targets, sources, undefended=undefended, before=before)
    earlier = {name: look_up("network", other, paths) for name, other in before.items()}
    ranges = {look_up("network", name, paths): _pair(values) for name, values in (input_range or {}).items()}
    networks = {
        path: load_model(path, image_size=image_size, input_range=ranges.get(path, (0, 1))) for path in paths.values()
    }
    shapes = {name: networks[path].image_shape for name, path in paths.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Networks that are measured together must have the same image_shape. Received: {shapes}")
    look_up("data format", format, {name: each for name, each in formats.FORMATS.items() if each.labelled})
    images_by_split = _load(format, images, split, data or {})
    examples = getattr(images_by_split, split or "test")
    examples = examples if limit is None else examples.limit(limit, seed)
    account = f"{images_by_split.account}\nmeasured: {plural(len(examples), 'image')} of the {split or 'test'} split"
    print(account)
    few = _batches(examples.limit(_FEW, seed), next(iter(shapes.values())), batch_size)
    for name, path in paths.items():
        if networks[path].num_classes == images_by_split.num_classes and path not in ranges:
            _check_range(name, path, networks[path], few)
    assessment = assess(
        {name: networks[path] for name, path in targets.items()},
        {name: networks[path] for name, path in sources.items()},
        dataset=_batches(examples, next(iter(shapes.values())), batch_size),
        attacks=configured,
        epsilons={name: radii for name in configured if "epsilon" not in (attacks or {}).get(name, {})},
        ordered=images_by_split.ordered,
        queries=queries or (),
        query_limit=query_limit,
        check_limit=check_limit,
        check_epsilon=radii[-1],
        undefended=undefended,
        before={name: networks[path] for name, path in earlier.items()},
        effort=check_options,
        class_names=images_by_split.class_names,
        account=account,
        seed=seed,
        folder=Path(output),
        config=config,
        stage="evaluate",
    )
    print(f"\n{assessment}\n\nwritten: {assessment.report()}")
    return assessment


def _pair(values: list[float]) -> tuple[float, float]:
    if len(values) != 2:
        raise ValueError(f"An input_range is the lowest and the highest value. Received: {values}")
    return values[0], values[1]


def _load(format: str, root: str, split: str | None, options: dict[str, Any]) -> data_room.ImageData:
    """The images; those of a folder that has no split of its own are all in `test`."""
    place = Path(root).expanduser()
    within = {item.name for item in place.iterdir() if item.is_dir()} if place.is_dir() else set()
    if format != "folder" or split not in (None, "test") or {"train", "test"} <= within or not within:
        return formats.load(format, root, **options)
    if split == "test" and "test" not in within:
        return formats.load(format, root, **options)
    for option in options:
        look_up("option of the data format 'folder'", option, dict.fromkeys(formats.options("folder")))
    if "test" in within:
        place = place / "test"
    folders = sorted(item.name for item in place.iterdir() if item.is_dir() and not item.name.startswith("."))
    names = tuple(options.get("class_names") or folders)
    if unknown := sorted(set(folders) - set(names)):
        raise ValueError(f"Each sub-folder of {place} must be one of the class_names. Received: {unknown}")
    every = formats.load("images", place)
    classes = [
        Path(path).relative_to(place.resolve()).parts[0]
        for path in ([] if every.test.paths is None else every.test.paths)
    ]
    inside = [row for row, name in enumerate(classes) if name in names]
    if not inside:
        raise ValueError(f"A folder of images needs one sub-folder a class. Received: {place}, which has none")
    test = dataclasses.replace(
        every.test, labels=np.array([names.index(name) if name in names else 0 for name in classes], np.int32)
    )
    return dataclasses.replace(
        every, test=test.select(inside), class_names=names, ordered=bool(options.get("ordered", False))
    )


def _check_range(name: str, path: str, network: LoadedModel, batches: tf.data.Dataset) -> None:
    """Warns of a network that is at chance on clean images in [0, 1], or much better in [0, 255]."""
    wide = load_model(path, image_shape=network.image_shape, input_range=(0, 255))
    right, right_wide, count = 0, 0, 0
    for images, labels in batches:
        labels = np.asarray(labels)
        right += int(np.sum(np.argmax(network(images), -1) == labels))
        right_wide += int(np.sum(np.argmax(wide(images), -1) == labels))
        count += len(labels)
    chance = 1 / network.num_classes
    # Twice the standard error of a network that guesses.
    if count and (
        right / count <= chance + 2 * (chance * (1 - chance) / count) ** 0.5 or right_wide - right > count / 5
    ):
        print(
            f"warning: {name} is right on {right / count:.0%} of {plural(count, 'clean image')} in [0, 1], chance "
            f"being {chance:.0%}, and on {right_wide / count:.0%} in [0, 255]. If it takes another range, say so: "
            f"--input_range '{{\"{name}\": [0, 255]}}'",
            file=sys.stderr,
        )


def _batches(examples: data_room.Examples, shape: tuple[int, int, int], batch_size: int) -> tf.data.Dataset:
    batches = data_room.batches(examples, image_size=shape[:2], batch_size=batch_size, cache=False)
    if shape[2] == 3:
        return batches
    # The loaders give three channels; a grey image has three equal ones.
    return batches.map(lambda images, labels: (tf.reduce_mean(images, -1, keepdims=True), labels))


main = command_line.command(evaluate, resumes=True)

if __name__ == "__main__":
    sys.exit(main())
