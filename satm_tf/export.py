"""satm-tf export: exports a run's networks for TF Serving and to other formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from satm_tf import attacks, command_line, models
from satm_tf.configurable import look_up
from satm_tf.detection import FittedDetector
from satm_tf.experiment import config, images
from satm_tf.experiment.card import facts_from_run
from satm_tf.experiment.run_folder import CO_TRAIN, RunFolder, Stage
from satm_tf.serving import comparison, export_saved_model
from satm_tf.serving.formats import FORMATS


def export(
    source: str,
    *,
    scheme: str | None = None,
    networks: list[str] | None = None,
    folder: str = "exported_models",
    name: str | None = None,
    labels: list[str] | None = None,
    version: int | None = None,
    formats: list[str] | None = None,
    limit: int = 300,
    queries: int = 200,
) -> None:
    """Exports networks as SavedModels for TF Serving, and optionally to other formats.

    Args:
        source: A run folder of satm-tf train, or the .keras file of one classifier.
        scheme: The scheme whose networks to export; required for a run folder.
        networks: Which of its networks to export; null is all.
        folder: The parent folder, with a folder for each model.
        name: The model's name, for a .keras file; null is the file's name.
        labels: A name for each class; null takes the run's class names. Required for a .keras file.
        version: The version of each model; null is the next free one.
        formats: Other formats to write and to compare under attack, only from a run folder: litert_float32,
            litert_float16, litert_int8, onnx.
        limit: Maximum number of test images to compare the formats on, and of training images to calibrate litert_int8
            with.
        queries: Number of queries per image for the query attack on each format; 0 makes no query attack.

    Raises:
        ValueError: If the scheme, a network or a format is unknown, or labels are missing.
        FileNotFoundError: If the source is neither a run folder nor a .keras file.
        FileExistsError: If the version exists.
        VerificationError: If the exported model does not give the same answers as the network.
    """
    for each in formats or ():
        look_up("format", each, FORMATS)
    if Path(source).suffix == ".keras" and Path(source).is_file():
        if labels is None or formats or scheme or networks:
            raise ValueError(
                "To export a .keras file, give --labels, but not --scheme, --networks or --formats, which are for a "
                f"run folder. Received: labels={labels}, scheme={scheme}, networks={networks}, formats={formats}"
            )
        _export(Path(source), Path(folder) / (name or Path(source).stem), labels, version, {})
        return
    run = RunFolder(source)
    if not run.config.exists():
        raise FileNotFoundError(
            f"The source must be a run folder with a config.yaml, or a .keras file. Received: {source}"
        )
    if name is not None:
        raise ValueError(
            f"--name is for a .keras file; a run's models are named by its networks. Received: --name {name}"
        )
    described = config.from_arguments(["--config", str(run.config)])
    look_up("scheme (--scheme)", scheme, described.schemes)
    stage = Stage(CO_TRAIN, str(scheme))
    trained = {file.stem: file for file in sorted(run.networks(stage).glob("*.keras"))}
    if not trained:
        raise ValueError(f"This scheme is not trained yet; re-run its training to resume. Received: --scheme {scheme}")
    chosen = {network: look_up("network", network, trained) for network in networks or trained}
    data = images.load_data(described.data, run, described.seed) if formats or labels is None else None
    for network, file in chosen.items():
        model_labels = labels or list(data.class_names)  # type: ignore[union-attr]
        facts = facts_from_run(run.path, stage.name, network)
        detector = run.load_detector(stage, network)
        if detector is not None and formats:
            print(
                f"warning: of {network}, only the SavedModel has its detector. satm_tf.serving.convert writes a "
                "satm_tf.detection.Guarded model in other formats, whose last class is the rejection."
            )
        exported = _export(file, Path(folder) / network, model_labels, version, facts, detector)
        if formats and data is not None:
            attack = config.make_attack(described.attack)
            splits = (split.limit(limit, described.seed) for split in (data.test, data.train))
            test, train = (images.arrays(split, described) for split in splits)
            frame = comparison.convert_and_compare(
                models.load_classifier(file),
                exported.parent / "formats" / exported.name,
                formats,
                name=network,
                images=test[0],
                labels=test[1],
                calibration=train[0],
                attack=attack,
                query_attack=attacks.SquareAttack(epsilon=attack.epsilon, queries=queries) if queries else None,
            )
            print(frame.to_string(index=False, float_format="{:.3f}".format))


def _export(
    file: Path,
    folder: Path,
    labels: list[str],
    version: int | None,
    facts: dict[str, Any],
    detector: FittedDetector | None = None,
) -> Path:
    exported = export_saved_model(
        models.load_classifier(file), folder, labels=labels, version=version, card=facts, detector=detector
    )
    print(f"exported {exported}; start a server with {exported.parent.parent / 'serve.sh'}")
    return exported


main = command_line.command(export)

if __name__ == "__main__":
    sys.exit(main())
