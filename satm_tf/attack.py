"""satm-tf attack: writes adversarial PNGs, with a table of results."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from satm_tf import attacks, command_line, models
from satm_tf import data as data_room
from satm_tf.configurable import look_up, plural
from satm_tf.evaluation.adversarial_images import write_adversarial
from satm_tf.evaluation.suite import read_suite


def attack(
    *,
    model: dict[str, str] | str,
    images: str,
    output: str,
    attack: dict[str, dict[str, Any]] | str = "pgd",
    epsilon: list[float] | None = None,
    options: dict[str, Any] | None = None,
    format: str = "images",
    data: dict[str, Any] | None = None,
    split: Literal["train", "validation", "test"] | None = None,
    target: int | None = None,
    limit: int | None = 100,
    image_size: int | None = None,
    input_range: list[float] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> None:
    """Attacks models on images, and writes PNGs, results.csv and a gallery.png for each attack and epsilon.

    Images are rounded to 8 bits before the attack and again after it, inside the ball; every figure in the table is
    measured on the PNGs as written. If the images have labels, the output folder is an adversarial suite, with
    suite.json, on which satm-tf evaluate --suite scores any model.

    Args:
        model: A .keras, .onnx or .tflite file, or the folder of a SavedModel, optionally followed by # and the output
            to use. Or several by name: {"unseen/a": "a.keras", "same_scheme/b": "b.keras"}, where the name says which
            attacker has the model, as for the sources of satm-tf evaluate. A single model is named unseen/<name of its
            file>.
        images: The folder of the images.
        output: The folder to write; it must not exist.
        attack: The name of the attack; or several by name, with their options: {"fgsm": {}, "pgd_20": {"name": "pgd",
            "steps": 20}}. An attack with its own epsilon uses only that one.
        epsilon: One or several, in units of images in [0, 1]. If not given, 16/256, or no cap for minimum-distortion
            attacks.
        options: The other options of a single attack, such as {"steps": 20, "norm": "l2"}.
        format: What the folder holds: images (files without labels, which are moved away from the predicted class),
            folder, adience, utkface, idx, table, imagenet or synthetic_faces.
        data: Options of the format, such as {"fold": 1}.
        split: Which split of the data set to use. null is the test split; for a folder without splits, every image.
        target: The class to reach, for all images; if not given, any class but the label counts.
        limit: Maximum number of images; null is all.
        image_size: Height and width, for a model that accepts any size.
        input_range: The range of pixel values that the models expect, [lowest, highest]; [0, 1] if not given.
        batch_size: Number of images in a batch.
        seed: The seed for the choice of images and for the attack's random numbers.

    Raises:
        ValueError: If the model, the attack or the images cannot be used.
        FileExistsError: If the output exists.
    """
    if Path(output).exists():
        raise FileExistsError(f"{output} exists; choose another --output. Received: {output}")
    labelled = look_up("data format", format, data_room.formats.FORMATS).labelled
    if not isinstance(attack, str) and options:
        raise ValueError(f"With several attacks, give the options in --attack. Received: --options {options}")
    described = {attack: options or {}} if isinstance(attack, str) else attack
    configured = {
        name: _configure({"name": name, **each}, epsilon, target, labelled, seed) for name, each in described.items()
    }
    low, high = input_range or (0, 1)
    paths = {_name(model): model} if isinstance(model, str) else model
    networks = {
        name: models.load_model(path, image_size=image_size, input_range=(low, high)) for name, path in paths.items()
    }
    shapes = {name: network.image_shape for name, network in networks.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"Give at least one model, all with the same image_shape. Received: {shapes}")
    whole = data_room.formats.load_to_measure(format, images, split, **(data or {}))
    for name, network in networks.items():
        if labelled and network.num_classes != whole.num_classes:
            raise ValueError(
                f"The model has {network.num_classes} classes, but the images have {whole.num_classes}. Received: "
                f"{paths[name]}, {images}"
            )
    print(whole.account)
    examples = getattr(whole, split or "test")
    examples = examples if limit is None else examples.limit(limit, seed)
    if not len(examples):
        raise ValueError(f"This split has no images; choose another. Received: --split {split}")
    height, width, channels = next(iter(shapes.values()))
    batches = list(data_room.batches(examples, image_size=(height, width), batch_size=batch_size, cache=False))
    pixels, labels = (np.concatenate([np.asarray(batch[part]) for batch in batches]) for part in (0, 1))
    table = write_adversarial(
        output,
        networks,
        pixels if channels == 3 else pixels.mean(-1, keepdims=True),
        labels if labelled else None,
        attacks=configured,
        epsilons={name: epsilon for name in configured if epsilon and "epsilon" not in described[name]},
        target=target,
        class_names=whole.class_names,
        paths=None if examples.paths is None else examples.paths.tolist(),
        batch_size=batch_size,
    )
    for (crafting, used, radius), group in table.groupby(["network", "attack", "epsilon"], sort=False):
        rate = f"{group.success.mean():.1%} of {plural(len(group), 'written PNG')}"
        print(f"{crafting}, {used}, epsilon {radius:g}: {rate} fool the model")
    print(f"written: {output}")
    if labelled:
        print(read_suite(output))


def _name(path: str) -> str:
    """The name of a single model: an unseen model, the attacker with least access."""
    return f"unseen/{re.sub(r'[^A-Za-z0-9_+-]', '_', Path(path.partition('#')[0]).stem) or 'model'}"


def _configure(
    described: dict[str, Any], epsilon: list[float] | None, target: int | None, labelled: bool, seed: int
) -> attacks.Attack:
    bounded = getattr(attacks.Attack.members.get(described["name"]), "bounded", True)
    radius = {"epsilon": max(epsilon)} if epsilon else {"epsilon": 16 / 256} if bounded else {}
    # Files without labels have no label to leave.
    source = "target" if target is not None else "label" if labelled else "predicted"
    chosen = {} if source == "label" else {"label_source": source}
    return attacks.get({**radius, **chosen, "seed": seed, **described})


main = command_line.command(attack)

if __name__ == "__main__":
    sys.exit(main())
