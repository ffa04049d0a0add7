"""satm-tf attack: adversarial PNGs of images, with a table of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from satm_tf import attacks, command_line, models
from satm_tf import data as data_room
from satm_tf.configurable import look_up, plural
from satm_tf.evaluation.adversarial_images import write_adversarial


def attack(
    *,
    model: str,
    images: str,
    output: str,
    attack: str = "pgd",
    epsilon: list[float] | None = None,
    options: dict[str, Any] | None = None,
    format: str = "images",
    data: dict[str, Any] | None = None,
    split: Literal["train", "validation", "test"] = "test",
    target: int | None = None,
    limit: int | None = 100,
    image_size: int | None = None,
    input_range: list[float] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> None:
    """Attacks a model on images, and writes PNGs, results.csv and gallery.png.

    The images are made 8-bit before the attack and the PNGs after it, inside the ball; every figure in the table is
    measured on the PNGs as written.

    Args:
        model: A .keras, .onnx or .tflite file, or the folder of a SavedModel; behind a # may stand the output to use.
        images: The folder of the images.
        output: The folder to write; it must not exist.
        attack: The name of the attack.
        epsilon: One or several, in units of images in [0, 1]; 16/256 if none, or no cap for minimum-distortion attacks.
        options: The attack's other options, such as {"steps": 20, "norm": "l2"}.
        format: What the folder holds: images (files without labels, so that the attack leaves the predicted class),
            folder, adience, utkface, idx, table, imagenet or synthetic_faces.
        data: Options of the format, such as {"fold": 1}.
        split: Which split of a data set.
        target: The class to reach, for all images; without it any class but the label will do.
        limit: The most images; null for all.
        image_size: Height and width, for a model that takes any.
        input_range: The lowest and the highest value of a pixel that the model takes; [0, 1] if none.
        batch_size: Images in a batch.
        seed: Seed of the choice of images and of the attack's random numbers.

    Raises:
        ValueError: If the model, the attack or the images cannot be used.
        FileExistsError: If the output exists.
    """
    if Path(output).exists():
        raise FileExistsError(f"{output} exists; choose another --output. Received: {output}")
    labelled = look_up("data format", format, data_room.formats.FORMATS).labelled
    configured = _configure(attack, options or {}, epsilon, target, labelled, seed)
    low, high = input_range or (0, 1)
    network = models.load_model(model, image_size=image_size, input_range=(low, high))
    whole = data_room.formats.load(format, images, **(data or {}))
    if labelled and network.num_classes != whole.num_classes:
        raise ValueError(
            f"The model has {network.num_classes} classes, the images {whole.num_classes}. Received: {model}, {images}"
        )
    print(whole.account)
    examples = getattr(whole, split)
    examples = examples if limit is None else examples.limit(limit, seed)
    if not len(examples):
        raise ValueError(f"There are no images in this split; choose another. Received: --split {split}")
    height, width, channels = network.image_shape
    batches = list(data_room.batches(examples, image_size=(height, width), batch_size=batch_size, cache=False))
    pixels, labels = (np.concatenate([np.asarray(batch[part]) for batch in batches]) for part in (0, 1))
    table = write_adversarial(
        output,
        network,
        pixels if channels == 3 else pixels.mean(-1, keepdims=True),
        labels if labelled else None,
        attack=configured,
        epsilons=epsilon,
        target=target,
        class_names=whole.class_names,
        paths=None if examples.paths is None else examples.paths.tolist(),
        batch_size=batch_size,
    )
    for radius, group in table.groupby("epsilon"):
        print(f"epsilon {radius:g}: {group.success.mean():.1%} of {plural(len(group), 'written PNG')} fool the model")
    print(f"written: {output}")


def _configure(
    name: str, options: dict[str, Any], epsilon: list[float] | None, target: int | None, labelled: bool, seed: int
) -> attacks.Attack:
    bounded = getattr(attacks.Attack.members.get(name), "bounded", True)
    radius = {"epsilon": max(epsilon)} if epsilon else {"epsilon": 16 / 256} if bounded else {}
    # Files without labels have none to leave.
    source = "target" if target is not None else "label" if labelled else "predicted"
    chosen = {} if source == "label" else {"label_source": source}
    return attacks.get(name, **{**radius, **chosen, "seed": seed, **options})


main = command_line.command(attack)

if __name__ == "__main__":
    sys.exit(main())
