"""satm-tf evaluate: whose adversarial examples fool whom, and what a network only hides."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from satm_tf import command_line
from satm_tf import data as data_room
from satm_tf.configurable import look_up
from satm_tf.data import formats
from satm_tf.evaluation import Assessment, assess
from satm_tf.evaluation.assessment import check_names
from satm_tf.experiment.config import make_attack
from satm_tf.models import load_model

_EPSILON = 16 / 256


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
    split: Literal["train", "validation", "test"] = "test",
    limit: int | None = 1000,
    image_size: int | None = None,
    queries: list[int] | None = None,
    query_limit: int = 100,
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
        split: Which split of the data set.
        limit: The most images; null for all.
        image_size: Height and width; null asks the networks.
        queries: Numbers of queries, such as 50 100 1000, with which each target is attacked by questions alone; none if
            not given.
        query_limit: On how many of the images.
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
    networks = {path: load_model(path, image_size=image_size) for path in paths.values()}
    shapes = {name: networks[path].image_shape for name, path in paths.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Networks that are measured together must have the same image_shape. Received: {shapes}")
    look_up("data format", format, {name: each for name, each in formats.FORMATS.items() if each.labelled})
    images_by_split = formats.load(format, images, **(data or {}))
    examples = getattr(images_by_split, split)
    examples = examples if limit is None else examples.limit(limit, seed)
    account = f"{images_by_split.account}\n{len(examples):,} images of the {split} split were measured"
    print(account)
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


def _batches(examples: data_room.Examples, shape: tuple[int, int, int], batch_size: int) -> tf.data.Dataset:
    batches = data_room.batches(examples, image_size=shape[:2], batch_size=batch_size, cache=False)
    if shape[2] == 3:
        return batches
    # The loaders give three channels; a grey image has three equal ones.
    return batches.map(lambda images, labels: (tf.reduce_mean(images, -1, keepdims=True), labels))


main = command_line.command(evaluate, resumes=True)

if __name__ == "__main__":
    sys.exit(main())
