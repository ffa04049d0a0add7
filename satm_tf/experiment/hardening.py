"""Defends a trained model: an experiment made from the model and its images, and its results."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from satm_tf import data as data_room
from satm_tf import storage
from satm_tf.configurable import look_up, plural
from satm_tf.detection import Detector, FittedDetector
from satm_tf.evaluation import Predictions
from satm_tf.evaluation.ladder import ladder_table
from satm_tf.evaluation.predictions import CLEAN
from satm_tf.evaluation.rungs import RUNGS, START
from satm_tf.evaluation.statistics import compare_paired
from satm_tf.experiment import cost, work
from satm_tf.experiment.config import (
    ChecksConfig,
    Config,
    DataConfig,
    ExportConfig,
    NetworkConfig,
    QueriesConfig,
    SchemeConfig,
    TrainingConfig,
)
from satm_tf.experiment.detecting import check_detector
from satm_tf.experiment.images import Sizes, load_data
from satm_tf.experiment.run_folder import CO_TRAIN, FINE_TUNE, RunFolder, Stage
from satm_tf.experiment.running import run
from satm_tf.experiment.surrogates import SurrogateConfig
from satm_tf.metrics import at_chance
from satm_tf.models import ImageClassifier, get_backbone
from satm_tf.training import Scheme

ORIGINAL, HARDENED = "original", "hardened"
"""The names of the original and of the hardened model in results."""

_SMALL = ("compact_resnet", "compact_vgg", "compact_inception", "compact_densenet")
_LARGE = ("resnet50_imagenet", "efficientnet_v2_b0_imagenet", "inception_v3_imagenet", "vgg16_imagenet")
_LARGE_FROM = 96
_DETECTOR = "feature_classifier"
_CHECKS = ChecksConfig(schemes=[HARDENED], limit=60, effort={"steps": 10, "targets": 2, "queries": 100})
# With fewer steps a partner learns almost nothing, whatever the number of images.
_STEPS, _MOST_EPOCHS = 400, 60
_LEAST_EPOCHS = 4


@dataclass(frozen=True, eq=False)
class Hardened:
    """The result of `harden`; printing it shows the defence's cost and gain.

    Attributes:
        model: The hardened classifier: images in [0, 1] to logits.
        original: The original model, in the same form.
        results: The rows of `results.csv`, with the targets `original/<name>` and `hardened/<name>`.
        predictions: The predictions of both for every image, for `ladder_table` and other tests.
        folder: The run folder.
        keras_file: The hardened classifier on disk.
        saved_model: Its SavedModel, for TensorFlow Serving, with the model card in `assets.extra`.
        report: The page with all figures.
        summary: The text that printing shows.
        detector: The detector in the SavedModel, if one was requested.
    """

    model: ImageClassifier
    original: ImageClassifier
    results: pd.DataFrame
    predictions: Predictions
    folder: Path
    keras_file: Path
    saved_model: Path
    report: Path
    summary: str
    detector: FittedDetector | None = None

    def __str__(self) -> str:
        return self.summary


def harden(
    model: keras.Model | str | os.PathLike[str],
    data: str | os.PathLike[str] | tf.data.Dataset | tuple[Any, Any],
    *,
    output: str | os.PathLike[str],
    input_range: tuple[float, float] = (0, 255),
    class_names: Sequence[str] | None = None,
    format: str = "folder",
    data_options: Mapping[str, Any] | None = None,
    epsilon: float = 8 / 255,
    scheme: str = "recommended",
    partners: Sequence[str] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    detector: bool | str = False,
) -> Hardened:
    """Defends a trained classifier against adversarial examples crafted on other models, and measures the effect.

    Partners are fine-tuned on the same images; then the original model and its partners learn from each other's
    adversarial examples. Networks that took no part in the training attack the model before and after. Everything is
    one experiment (see `satm_tf.experiment.run`) in one run folder, so the same call resumes after an interruption.

    If the model was trained on these images, put those that it has not seen into `test/`, and the others into `train/`.
    Otherwise the accuracy before the defence is measured on images that the model has seen, and the cost of the defence
    is overestimated.

    Args:
        model: A Keras classifier for square images that `ImageClassifier.from_keras` accepts, or its `.keras` file.
        data: A folder of images; or `(images, labels)`, arrays `[n, height, width, 3]` and int `[n]`; or a
            `tf.data.Dataset` of such batches. Images in memory are uint8, or floats in `input_range`, and are written
            to the run folder with 8 bits.
        output: The run folder.
        input_range: The range of pixel values that the model expects, (lowest, highest).
        class_names: The classes in the order of the model's outputs; for a folder, the names of its sub-folders. None
            is alphabetical order or, for images in memory, the label numbers.
        format: What the folder holds, one of `satm_tf.data.formats.FORMATS` that can be trained on.
        data_options: Other fields of `DataConfig`, such as `{"fold": 1}` or `{"test_share": 0.3}`.
        epsilon: The size of the perturbations, in units of images in [0, 1].
        scheme: One of `satm_tf.training.SCHEMES`.
        partners: Backbones that train together with the model; None chooses two that fit the images, with pre-trained
            weights if these are on this machine.
        epochs: Passes over the images, for the partners and for the defence; None chooses more for fewer images.
        minutes: The estimated total time on this machine. Epochs and partners are chosen once to fit it; a resumed run
            keeps them.
        seed: The seed of all random numbers.
        detector: Whether to export a detector of adversarial examples with the hardened model, or the name of its kind,
            one of `satm_tf.detection`; True is "feature_classifier". Its signatures then also give `adversarial_score`
            and `suspicious`. It needs the extra `detectors`.

    Returns:
        The hardened model, the original model, their figures and the paths of all files.

    Raises:
        ValueError: If the model and the images do not match, the model is no better than chance on them, an option is
            unknown, or `output` holds another run.
        FileNotFoundError: If the model or the folder does not exist.
        ImportError: If a detector is requested and scikit-learn is missing.
        Interrupted: If SIGINT or SIGTERM was received while it trained; everything is saved.

    Example:
        >>> hardened = satm_tf.harden("mine.keras", "photos/", output="runs/mine")
        >>> print(hardened)
        Clean accuracy 96.0% -> 94.5% (-1.5 points, 200 test images).
    """
    output, input_range = Path(output), (float(input_range[0]), float(input_range[1]))
    kind = _DETECTOR if detector is True else detector or None
    if kind is not None:
        look_up("detector", kind, Detector.members)
        check_detector(kind, null_class=Scheme.get(scheme).null_share > 0)
    record = _Record(output, {**locals(), "detector": kind})
    file, classifier = _model_file(model, input_range, output, record)
    if classifier.image_shape[0] != classifier.image_shape[1]:
        raise ValueError(f"Only models of square images can be hardened. Received: {classifier.image_shape}")
    size = classifier.image_shape[0]
    described = DataConfig(
        **{
            "format": format,
            "image_size": size,
            "class_names": None if class_names is None else list(class_names),
            "test_share": 0.2,
            "fold": 0 if format in ("adience", "synthetic_faces") else None,
            **_images(data, output, input_range, class_names, record),
            **(data_options or {}),
        }
    )
    images = load_data(described, RunFolder(output), seed)
    _check_fit(classifier, images, described)
    name = _name(file)
    trained_together, unseen = _helpers(size, partners)
    sizes = Sizes(len(images.train), len(images.validation), len(images.test))
    batch = int(np.clip(2 ** int(math.log2(max(1, sizes.train // 16))), 8, 64))
    usual = int(np.clip(math.ceil(_STEPS * batch / sizes.train), _LEAST_EPOCHS, _MOST_EPOCHS))

    def configured(epochs: int, partners: Sequence[str]) -> Config:
        training = TrainingConfig(epochs=epochs, batch_size=batch, learning_rate=1e-3, decay="cosine")
        return Config(
            name=name,
            run_dir=str(output),
            seed=seed,
            data=described,
            networks={
                name: NetworkConfig(model=str(file), input_range=input_range),
                **{each: _partner(each) for each in partners},
            },
            holdouts={each: _partner(each) for each in unseen if each not in partners},
            surrogates={"start": SurrogateConfig(rung="start", start="same")},
            fine_tune=training,
            # At a new model's learning rate, a trained one would forget.
            co_train=dataclasses.replace(training, learning_rate=3e-4),
            attack={"name": "rs_fgsm", "epsilon": float(epsilon)},
            schemes={
                ORIGINAL: SchemeConfig(preset="undefended", networks=[name], epochs=0),
                HARDENED: SchemeConfig(preset=scheme),
            },
            evaluation_attacks={"fgsm": {"name": "fgsm"}, "mi_fgsm": {"name": "mi_fgsm", "steps": 10}},
            queries=QueriesConfig(budgets=[50, 100]),
            checks=_CHECKS,
            export=ExportConfig(HARDENED, str(output / "exported"), [name], kind),
        )

    chosen = record.content.get("plan")
    if chosen is None:
        chosen = {"epochs": epochs or usual, "partners": trained_together}
        if minutes is not None:
            chosen = _plan_for(minutes, configured, chosen, sizes, epochs)
        record.write(plan=chosen)
    config = configured(**chosen)
    if not RunFolder(output).results.exists():
        about = _seconds(config, sizes) / 60
        print(
            f"{name} with {', '.join(chosen['partners'])}, {plural(chosen['epochs'], 'epoch')} each: about "
            f"{about:.0f} min on this machine, from networks timed just now",
            flush=True,
        )
    results = run(config)
    return _outcome(config, name, results, float(epsilon))


class _Record:
    """`harden.json`: the arguments, digests of those in memory, and the plan; the same on every call."""

    def __init__(self, output: Path, given: Mapping[str, Any]):
        self.path = output / "harden.json"
        self.content: dict[str, Any] = storage.read_json(self.path) if self.path.exists() else {}
        asked = {key: value for key, value in given.items() if key not in ("model", "data", "output", "kind")}
        if asked.get("detector") is None:
            asked.pop("detector", None)  # which records from before there were detectors lack
        plain = {key: list(value) if isinstance(value, (tuple, list)) else value for key, value in asked.items()}
        self.check("asked", {key: repr(value) for key, value in plain.items()})

    def write(self, **content: Any) -> None:
        self.content |= content
        storage.write_json(self.path, self.content)

    def check(self, key: str, value: Any) -> None:
        """Stores a value to be written, or checks that it equals the written one."""
        before = self.content.setdefault(key, value)
        if before != value:
            names = {**before, **value} if isinstance(value, dict) else ()
            differing = sorted(name for name in names if before.get(name) != value.get(name)) or [key]
            raise ValueError(
                f"{self.path.parent} holds the results of another call; choose another output, or delete it. "
                f"Received: other values of {', '.join(differing)}"
            )


def _model_file(
    model: Any, input_range: tuple[float, float], output: Path, record: _Record
) -> tuple[Path, ImageClassifier]:
    """The `.keras` file from which the experiment starts, and the classifier in it."""
    if isinstance(model, (str, os.PathLike)):
        file = Path(model)
        if not file.is_file():
            raise FileNotFoundError(f"No model was found at this path. Received: {model}")
        record.check("model", storage.sha256(file))
    elif isinstance(model, keras.Model):
        digest = hashlib.sha256()
        for weights in model.get_weights():
            digest.update(np.ascontiguousarray(weights).tobytes())
        record.check("model", digest.hexdigest())
        file = output / f"{_word(model.name)}.keras"
        if not file.exists():
            with storage.atomic_file(file) as temporary:
                model.save(temporary)
    else:
        raise ValueError(f"The model must be a Keras model or its .keras file. Received: {type(model).__name__}")
    return file, ImageClassifier.from_keras(str(file), input_range=input_range)


def _images(
    given: Any, output: Path, input_range: tuple[float, float], class_names: Sequence[str] | None, record: _Record
) -> dict[str, Any]:
    """The fields of the configuration that locate the images; images in memory are first written to files."""
    if isinstance(given, (str, os.PathLike)):
        return {"root": os.fspath(given)}
    batches = [given] if isinstance(given, tuple) else given
    pixels: list[Any] = []
    labels: list[int] = []
    low, high = input_range
    for some, classes in batches:
        some, classes = np.asarray(some), np.asarray(classes)
        if some.ndim != 4 or some.shape[-1] != 3 or classes.shape != some.shape[:1] or classes.dtype.kind not in "iu":
            raise ValueError(
                f"Images in memory must be [n, height, width, 3], with integer labels [n]. Received: {some.shape}, "
                f"and labels {classes.dtype} {classes.shape}"
            )
        if some.dtype != np.uint8:
            if some.min() < low or some.max() > high:
                raise ValueError(
                    f"Floats must lie in input_range, {tuple(input_range)}. Received: {some.min()} to {some.max()}"
                )
            some = np.round((some - low) / (high - low) * 255).astype(np.uint8)
        pixels.extend(some)
        labels.extend(classes.tolist())
    digests = sorted(
        hashlib.sha256(image.tobytes()).hexdigest() + str(label) for image, label in zip(pixels, labels, strict=True)
    )
    record.check("images", hashlib.sha256("".join(digests).encode()).hexdigest())
    names = list(class_names or map(str, range(max(labels, default=0) + 1)))
    if min(labels, default=0) < 0 or max(labels, default=0) >= len(names):
        raise ValueError(f"Labels must be from 0 to below {len(names)}. Received: {min(labels)} to {max(labels)}")
    lacking = [name for label, name in enumerate(names) if label not in labels]
    if lacking or len(names) < 2:
        raise ValueError(
            "Training needs at least two classes, and images of every class. Received: none of "
            f"{', '.join(lacking) or 'a second class'}"
        )
    folder = output / "images"
    if not folder.exists():
        with storage.atomic_folder(folder, durable=False) as temporary:
            for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                place = temporary / names[label] / f"{number:06}.png"
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(tf.io.encode_png(image).numpy())
    return {"root": str(folder), "format": "folder", "class_names": names}


def _check_fit(classifier: ImageClassifier, images: data_room.ImageData, described: DataConfig) -> None:
    """Checks before any training that the model fits these images."""
    if classifier.num_classes != images.num_classes:
        raise ValueError(
            f"The model distinguishes {classifier.num_classes} classes, but the images have {images.num_classes}: "
            f"{', '.join(images.class_names)}"
        )
    some = images.train.limit(256, 0)
    batches = data_room.batches(some, image_size=described.image_size, batch_size=128, cache=False).as_numpy_iterator()
    right = np.concatenate([np.argmax(classifier(batch), -1) == labels for batch, labels in batches])
    rate = float(right.mean())
    if at_chance(rate, images.num_classes):
        raise ValueError(
            f"The model classifies {rate:.0%} of {plural(len(right), 'training image')} correctly, no better than "
            "chance, so there is nothing to defend. Check input_range; that class_names are in the order of the "
            "model's outputs; and that images differ from class to class. Received: the classes "
            f"{', '.join(images.class_names)}"
        )


def _helpers(size: int, partners: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The partners, and the unseen networks that attack."""
    at_hand = [name for name in _LARGE if size >= _LARGE_FROM and NetworkConfig(name).weights_at_hand()]
    fitting = [*at_hand, *(name for name in _SMALL if size >= get_backbone(name).minimum_size)]
    chosen = list(partners or fitting[:2])
    unseen = [name for name in fitting if name not in chosen][:2]
    if not chosen or not unseen:
        raise ValueError(
            "The networks that train together with a model and attack it need images of at least 16 x 16. Received: "
            f"{size}"
        )
    return chosen, unseen


def _partner(backbone: str) -> NetworkConfig:
    return NetworkConfig(backbone, weights="at_hand" if get_backbone(backbone).published else None)


def _seconds(config: Config, sizes: Sizes) -> float:
    """The approximate time of a whole run on this machine."""
    return sum(each.seconds for each in work.parts(config, sizes, cost.timed(config)).values())


def _plan_for(
    minutes: float, configured: Any, usual: Mapping[str, Any], sizes: Sizes, epochs: int | None
) -> dict[str, Any]:
    """The most partners for which the minimum number of epochs fits the time, and the most epochs that then fit."""
    least = epochs or min(_LEAST_EPOCHS, usual["epochs"])
    for count in range(len(usual["partners"]), 0, -1):
        partners = usual["partners"][:count]
        first = _seconds(configured(least, partners), sizes)
        if first <= 60 * minutes or count == 1:
            break
    if first > 60 * minutes:
        print(f"warning: {minutes:g} min is too short; the shortest useful hardening takes about {first / 60:.0f} min")
    each = _seconds(configured(least + 1, partners), sizes) - first
    more = max(0, int((60 * minutes - first) / max(each, 1e-9)))
    return {"epochs": epochs or min(least + more, _MOST_EPOCHS), "partners": partners}


def _outcome(config: Config, name: str, results: pd.DataFrame, epsilon: float) -> Hardened:
    folder = config.folder
    predictions = Predictions.load(folder.predictions)
    stage = Stage(CO_TRAIN, HARDENED)
    summary = summarise(predictions, name, epsilon)
    saved = Path(storage.read_json(folder.exports)[name])
    hardened = Hardened(
        model=folder.load(stage, name),
        original=folder.load(Stage(FINE_TUNE, name), name),
        results=results,
        predictions=predictions,
        folder=folder.path,
        keras_file=folder.network(stage, name),
        saved_model=saved,
        report=folder.report,
        detector=folder.load_detector(stage, name),
        summary="\n".join(
            [
                summary,
                f"hardened model: {folder.network(stage, name)}",
                f"SavedModel:     {saved}",
                f"report:         {folder.report}",
            ]
        ),
    )
    storage.write_text(folder.path / "summary.txt", summary + "\n")
    return hardened


def summarise(predictions: Predictions, name: str, epsilon: float) -> str:
    """Describes a defence's cost on clean images, its gain on each rung, and the reason if it gains nothing.

    Args:
        predictions: Predictions of the targets `original/<name>` and `hardened/<name>`, on the same images.
        name: The model's name.
        epsilon: The size of the perturbations, for the text.

    Returns:
        Lines of text; the first is the cost on clean images.
    """
    before, after = f"{ORIGINAL}/{name}", f"{HARDENED}/{name}"
    clean = compare_paired(*(predictions.correct(CLEAN, 0.0, "", target) for target in (before, after)))
    rates = [float(predictions.correct(CLEAN, 0.0, "", target).mean()) for target in (before, after)]
    count = len(predictions.labels)
    ladder = ladder_table(predictions).xs("accuracy", axis="columns", level="value")
    rungs = [rung for rung in ladder.columns if rung in RUNGS]
    # The original model is the start itself, so for it that rung is white-box.
    compared = [rung for rung in rungs if rung != START]
    worst = [predictions.worst(target, compared) for target in (before, after)]
    gain = compare_paired(*worst)

    def line(label: str, *accuracies: float) -> str:
        return f"  {label:<24}{accuracies[0]:>7.1%} -> {accuracies[1]:.1%}"

    lines = [
        f"Clean accuracy {rates[0]:.1%} -> {rates[1]:.1%} ({100 * clean.difference:+.1f} points, "
        f"{plural(count, 'test image')}).",
        f"Accuracy under attack, epsilon {_fraction(epsilon)}, before -> after:",
        *(line(RUNGS[rung].label, *ladder.loc[[before, after], rung]) for rung in compared),
        line("worst of all of these", *(float(right.mean()) for right in worst)),
        *(line(RUNGS[rung].label, *ladder.loc[[before, after], rung]) for rung in rungs if rung == START),
        line("(white box, no claim)", *ladder.loc[[before, after], "white_box"]),
    ]
    if not gain.rises():
        lines.append(f"The defence did not help: {_why(rates, worst, gain, count)}")
    return "\n".join(lines)


def _why(rates: Sequence[float], worst: Sequence[Any], gain: Any, count: int) -> str:
    lost = rates[0] - float(worst[0].mean())
    if lost < 0.02:
        return (
            f"the attacks cost the original model only {100 * lost:.1f} points, so there was nothing to gain at "
            "this epsilon. Try a larger one."
        )
    if rates[1] < rates[0] - 0.1:
        return (
            f"the model has lost {100 * (rates[0] - rates[1]):.0f} points on clean images. Try a smaller epsilon, more "
            "images, or another number of epochs."
        )
    if gain.difference > 0:
        return (
            f"{100 * gain.difference:+.1f} points on {plural(count, 'test image')} may be chance "
            f"(p = {gain.p_value:.2g}). Measure more images."
        )
    return "the model learnt too little from its partners. Try more epochs, more images, or other partners."


def _fraction(epsilon: float) -> str:
    for whole in (255, 256):
        if abs(epsilon * whole - round(epsilon * whole)) < 1e-6 and round(epsilon * whole):
            return f"{round(epsilon * whole)}/{whole}"
    return f"{epsilon:g}"


def _word(text: str) -> str:
    """Turns a text into a name that is valid in files, columns and options."""
    word = re.sub(r"\W+", "_", text).strip("_") or "model"
    return (word if word[0].isalpha() else f"model_{word}")[:60]


def _name(file: Path) -> str:
    name = _word(file.stem)
    return f"{name}_model" if name in (*_SMALL, *_LARGE) else name
