"""python -m satm_tf.attack: adversarial PNGs of images, with a table of them.

usage: python -m satm_tf.attack --model MODEL --images FOLDER --output FOLDER
                                [--OPTION VALUE ...]

The model is a .keras file, of any kind, or the folder of a SavedModel.

options that people set:
  --attack NAME         pgd if not given; others: fgsm, auto_attack, square, ...
  --epsilon X           or [X, Y, ...], of images in [0, 1]; 16/256 is 0.0625
  --options OPTIONS     the attack's own, such as {"steps": 20, "norm": "l2"}
  --format FORMAT       images (no labels), folder (one a class), adience, idx
  --target N            the class to reach; without it any other class will do
  --limit N             the most images; 100
  --image_size N        where the model takes images of any size
  --config FILE         all of this from a YAML file

other options:
  --print_config   the options as YAML, for --config FILE
  --help-all       every option;  --debug  the traceback of an error

example: python -m satm_tf.attack --model a.keras --images pictures \\
  --output adversarial --epsilon 0.03
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf import attacks, command_line, data, models
from satm_tf.attacks.gallery import write_gallery

_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")


def attack(
    *,
    model: str,
    images: str,
    output: str,
    attack: str = "pgd",
    epsilon: list[float] | None = None,
    options: dict[str, Any] | None = None,
    format: Literal["images", "folder", "adience", "idx"] = "images",
    split: Literal["train", "validation", "test"] = "test",
    target: int | None = None,
    limit: int | None = 100,
    image_size: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Attacks a model on images, and writes PNGs, results.csv and gallery.png.

    The images are made 8-bit before the attack and the adversarial PNGs after it, inside the ball; all that the table
    says is measured on the PNGs as written.

    Args:
        model: A file or folder of a model, as `models.load_model` takes; behind a # may stand the output to use.
        images: The folder of the images.
        output: The folder to write; it must not exist.
        attack: The name of the attack.
        epsilon: One or several, in units of images in [0, 1]; 16/256 if none, or no cap for minimum-distortion attacks.
        options: The attack's other options, such as {"steps": 20, "norm": "l2"}.
        format: What the folder holds. images: files without labels, so that the model's own predictions are left;
            folder: a sub-folder a class; adience; idx: MNIST and its like.
        split: Which split of a data set.
        target: The class to be reached, for all images; none leaves the label.
        limit: The most images; null for all.
        image_size: Height and width; null asks the model.
        batch_size: Images in a batch.
        seed: Seed of an attack that draws random numbers.

    Returns:
        The table, one row for each image and epsilon.

    Raises:
        ValueError: If the model cannot be loaded, or its image size is neither given nor known.
        FileExistsError: If the output exists.
    """
    folder = Path(output)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another --output.")
    configured = _configure(attack, options or {}, epsilon, target, format, seed)
    network = models.load_model(model, image_size=image_size)
    examples, names = _load_images(images, format, split, limit)
    height, width, channels = network.image_shape
    batches = list(data.batches(examples, image_size=(height, width), batch_size=batch_size))
    clean = attacks.quantise(np.concatenate([batch for batch, _ in batches]))
    clean = clean if channels == 3 else attacks.quantise(clean.mean(-1, keepdims=True))
    labels = np.concatenate([batch for _, batch in batches])

    wanted = np.full_like(labels, target) if target is not None else labels
    epsilons = epsilon or [configured.epsilon]
    crafted = configured.craft(network, clean, wanted, epsilons=epsilons, batch_size=batch_size)
    before = _predict(network, clean, batch_size)
    sought = np.asarray(configured.classes(lambda *_, **__: tf.constant(before), tf.constant(clean), wanted))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        here = Path(temporary) / "result"
        frames = []
        for radius, adversarial in zip(epsilons, crafted, strict=True):
            part = here / f"{configured.name}-{radius:g}"
            written = _write_pngs(part, attacks.as_uint8(adversarial, clean))
            after = _predict(network, written, batch_size)
            frames.append(
                pd.DataFrame(
                    {
                        "attack": configured.name,
                        "epsilon": radius,
                        "file": [f"{part.name}/{index:05d}.png" for index in range(len(clean))],
                        "source": examples.paths if examples.paths is not None else "",
                        "label": [names[label] for label in labels] if names else "",
                        "before": [_name(names, logits) for logits in before],
                        "after": [_name(names, logits) for logits in after],
                        **attacks.distortion(written, clean),
                        "success": np.asarray(configured.succeeds(tf.constant(after), tf.constant(sought))),
                    }
                )
            )
            title = f"{configured.name}, {configured.norm}, epsilon {radius:g}"
            columns = [frames[-1][column].tolist() for column in ("before", "after")]
            write_gallery(part / "gallery.png", clean, written, *columns, title=title)
        table = pd.concat(frames, ignore_index=True)
        table.to_csv(here / "results.csv", index=False)
        here.rename(folder)
    for radius, group in table.groupby("epsilon"):
        print(f"epsilon {radius:g}: {group['success'].mean():.1%} of {len(group)} written PNGs fool the model")
    print(f"written: {folder}")
    return table


def _configure(
    name: str, options: dict[str, Any], epsilon: list[float] | None, target: int | None, format: str, seed: int
) -> attacks.Attack:
    kind = attacks.Attack.members.get(name)
    given = {"epsilon": max(epsilon)} if epsilon else {"epsilon": 16 / 256} if kind is None or kind.bounded else {}  # type: ignore[attr-defined]
    # Files without labels have none to leave.
    source = {"label_source": "target"} if target is not None else {}
    if not source and format == "images":
        source = {"label_source": "predicted"}
    return attacks.get(name, **{**given, **source, "seed": seed, **options})


def _load_images(root: str, format: str, split: str, limit: int | None) -> tuple[data.Examples, tuple[str, ...]]:
    if format == "images":
        paths = sorted(str(path) for path in Path(root).rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not paths:
            raise FileNotFoundError(f"No image ({', '.join(_SUFFIXES)}) in the folder. Received: {root}")
        examples, names = data.Examples(labels=np.zeros(len(paths), "int32"), paths=paths), ()
    else:
        whole = {"folder": data.folder, "adience": data.adience, "idx": data.idx}[format].load(root)
        print(whole.account)
        examples, names = getattr(whole, split), whole.class_names
    return (examples if limit is None else examples.limit(limit)), names


def _predict(network: Any, images: np.ndarray, batch_size: int) -> np.ndarray:
    starts = range(0, len(images), batch_size)
    batches = (tf.constant(images[start : start + batch_size]) for start in starts)
    return np.concatenate([np.asarray(network(batch, training=False), "float32") for batch in batches])


def _write_pngs(folder: Path, images: np.ndarray) -> np.ndarray:
    """Writes the images, reads them again, and gives what was read, in [0, 1]."""
    folder.mkdir(parents=True)
    read = []
    for index, image in enumerate(images):
        path = str(folder / f"{index:05d}.png")
        tf.io.write_file(path, tf.io.encode_png(image))
        read.append(tf.io.decode_png(tf.io.read_file(path)).numpy() / np.float32(255))
    return np.stack(read).astype("float32")


def _name(names: tuple[str, ...], logits: np.ndarray) -> str:
    return names[logits.argmax()] if names else str(logits.argmax())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return command_line.run(
        lambda given: jsonargparse.CLI(attack, args=given, as_positional=False, prog="python -m satm_tf.attack"),
        arguments,
        page=__doc__,
    )


if __name__ == "__main__":
    sys.exit(main())
