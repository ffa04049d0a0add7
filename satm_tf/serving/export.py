"""SavedModels in the folder layout that TF Serving polls."""

from __future__ import annotations

import datetime
import importlib
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf.configurable import serialize
from satm_tf.detection import FittedDetector
from satm_tf.detection.base import weights_digest
from satm_tf.models import ImageClassifier
from satm_tf.serving import card as model_card
from satm_tf.serving.deployment import write_configuration
from satm_tf.serving.signatures import INPUTS, OUTPUTS, outputs, write
from satm_tf.serving.verification import tolerance, verify
from satm_tf.serving.warmup import write_warmup
from satm_tf.storage import atomic_folder

_SAMPLES = 4


def export_saved_model(
    model: ImageClassifier,
    folder: str | Path,
    *,
    labels: Sequence[str],
    version: int | None = None,
    samples: np.ndarray | None = None,
    card: Mapping[str, Any] | None = None,
    detector: FittedDetector | None = None,
) -> Path:
    """Writes `<folder>/<version>/`, a self-contained SavedModel, complete or not at all.

    Its signatures are `serving_default` (images), `serving_bytes` (JPEG and PNG files) and `features`; `signatures.py`
    describes their inputs and outputs. The labels are the asset `labels.txt`. In `assets.extra` are warm-up requests
    for TensorFlow Serving and a model card, `model_card.md` and `model_card.json`.

    Before the version appears under its name, it is loaded again, every signature is compared with the model, and its
    operations with those of TensorFlow 2.15. Then `models.config`, which lists all models next to this one, is written
    next to `folder`, and so are `batching.config` and `serve.sh` if they are missing.

    Args:
        model: The classifier.
        folder: Folder of the model, its base path in TF Serving; its name is the model's name.
        labels: A name for each class, in the order of the logits; each is one line of text.
        version: A positive number; None takes one more than the highest existing one.
        samples: Images to compare on and to warm up with, floats `[samples, *model.image_shape]` in [0, 1]; the first
            four are used, at 8 bits. They are stored with the model, so do not use images that you may not share. None
            uses random ones.
        card: More facts for the model card, such as `satm_tf.experiment.card.facts_from_run` collects.
        detector: A detector that was fitted to the classifier with its present weights, as `satm_tf.detection` has
            them. Every signature then also gives `adversarial_score` and `suspicious`, and the card the threshold and
            the detector's `rates`.

    Returns:
        The folder of the version.

    Raises:
        ValueError: If the labels do not match the classes, the samples or the detector do not match the model, or the
            version is not positive.
        FileExistsError: If the version exists, or another process wrote it meanwhile, because a server may have loaded
            it.
        VerificationError: If the exported model's answers differ from the model's. The version is then not written.

    Example:
        >>> export_saved_model(network, "exported_models/vgg", labels=["young", "old"])
        PosixPath('exported_models/vgg/1')
    """
    folder = Path(folder)
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            "Export an ImageClassifier; a Guarded one's parts with export_saved_model(guarded.network, ..., "
            f"detector=guarded.detector). Received: {type(model).__name__}"
        )
    _check_labels(labels, model.num_classes)
    images = _samples(samples, model.image_shape)
    _check_detector(detector, model, images)
    if version is None:
        present = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
        version = max(present, default=0) + 1
    if version < 1:
        raise ValueError(f"A version must be a positive number. Received: {version}")
    final = folder / str(version)
    if final.exists():
        raise FileExistsError(_taken(final))

    try:
        with atomic_folder(final) as written:
            with tempfile.TemporaryDirectory() as scratch:
                label_file = Path(scratch) / "labels.txt"
                label_file.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
                write(model, label_file, written, detector)
            differences = verify(written, model, labels, images, detector)
            write_warmup(written, folder.name, _warmup_requests(images))
            facts = _facts(model, folder.name, version, labels, differences, detector)
            model_card.write_card(written / "assets.extra", {**facts, **(card or {})})
    except FileExistsError as error:
        raise FileExistsError(_taken(final)) from error
    write_configuration(folder.parent)
    return final


def _taken(final: Path) -> str:
    return f"{final} exists; choose another version, or none to take the next free one. Received: {final.name}"


def _check_labels(labels: Sequence[str], num_classes: int) -> None:
    if len(labels) != num_classes:
        raise ValueError(f"There must be a label for each of {num_classes} classes. Received: {list(labels)}")
    unfit = [label for label in labels if not label or label != label.strip() or len(label.splitlines()) > 1]
    if unfit or len(set(labels)) < len(labels):
        raise ValueError(
            "Each class needs its own label, one line of text without surrounding blanks. Received: "
            f"{unfit or list(labels)}"
        )


def _check_detector(detector: FittedDetector | None, model: ImageClassifier, images: np.ndarray) -> None:
    if detector is None:
        return
    if not isinstance(detector, FittedDetector):
        raise ValueError(
            f"The detector must be fitted, as satm_tf.detection.Detector.fit gives it. Received: "
            f"{type(detector).__name__}"
        )
    foreign = f"The detector must be one that was fitted to this model. Received: {detector.detector.name!r}, fitted to"
    if detector.fitted_to is not None:
        if detector.fitted_to != weights_digest(model):
            raise ValueError(f"{foreign} other weights than those of this one")
        return
    try:  # An older file does not say what it was fitted to.
        detector.score(model, tf.constant(images))
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(f"{foreign} other features than the {model.feature_size} of this one") from error


def _samples(samples: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if samples is None:
        # From dark to light and from flat to detailed, so that the predicted classes differ.
        random = np.random.default_rng(0)
        coarse = random.uniform(size=(_SAMPLES, 4, 4, 3)) * np.linspace(0.4, 1, _SAMPLES)[:, None, None, None]
        samples = tf.clip_by_value(tf.image.resize(coarse, shape[:2], "bicubic"), 0, 1).numpy()
    samples = np.asarray(samples, np.float32)
    if samples.shape[1:] != shape or not len(samples) or not (samples >= 0).all() or not (samples <= 1).all():
        raise ValueError(
            f"Samples must be at least one image of shape {shape} in [0, 1]. Received: shape {samples.shape}, values "
            f"from {samples.min(initial=np.inf)} to {samples.max(initial=-np.inf)}"
        )
    # Divided in the same way as serving_bytes divides decoded pixels.
    return np.round(samples[:_SAMPLES] * 255) / np.float32(255)


def _warmup_requests(images: np.ndarray) -> list[tuple[str, dict[str, np.ndarray]]]:
    files = np.array([tf.io.encode_png(np.round(image * 255).astype(np.uint8)).numpy() for image in images], object)
    values = {"images": images, "image_bytes": files}
    return [
        (signature, {name: values[name][:count]})
        for signature, name in INPUTS.items()
        for count in sorted({1, len(images)})
    ]


def _facts(
    model: ImageClassifier,
    name: str,
    version: int,
    labels: Sequence[str],
    differences: Mapping[str, float],
    detector: FittedDetector | None,
) -> dict[str, Any]:
    detected = {}
    if detector is not None:
        kind, threshold = serialize(detector.detector), float(detector.threshold)
        detected["detector"] = {**kind, "threshold": threshold, **detector.rates}
    return {
        "name": name,
        "version": version,
        "exported": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "network": {
            "backbone": model.backbone.name,
            "image_shape": list(model.image_shape),
            "parameters": model.count_params(),
            "features": model.feature_size,
            "initial_weights": model.initial_weights,
        },
        "labels": list(labels),
        "signatures": {signature: list(outputs(signature, bool(detected))) for signature in OUTPUTS},
        "verification": {
            "tolerance": tolerance(model),
            "largest_difference": dict(differences),
            "runs_on": "TensorFlow 2.15 and newer: the graph holds no newer operation",
        },
        "software": {
            "python": platform.python_version(),
            # The package itself late, because it imports this one.
            **{each.__name__: each.__version__ for each in (keras, np, tf, importlib.import_module("satm_tf"))},
        },
        "intended_use": model_card.INTENDED_USE,
        "limits": [*model_card.LIMITS, *([model_card.DETECTOR_LIMIT] if detected else [])],
        **detected,
    }
