"""python -m satm_tf.export: a run's networks for TF Serving and in other formats.

usage: python -m satm_tf.export RUN_FOLDER --scheme SCHEME [--OPTION VALUE ...]
       python -m satm_tf.export FILE.keras --labels [A, B, ...] [--OPTION ...]

options that people set:
  --networks [A, B]     some networks of the run; all if not given
  --folder FOLDER       holds a folder for each model; exported_models
  --name NAME           of the model, where it is a file's
  --version N           the next free one if not given
  --formats [F, ...]    litert_float32, litert_float16, litert_int8, onnx: they
                        are compared with the network, under attack too

other options:
  --print_config   the options as YAML, for --config FILE
  --help-all       every option;  --debug  the traceback of an error

example: python -m satm_tf.export runs/quickstart --scheme satm --formats [onnx]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonargparse
import keras
import numpy as np
import pandas as pd

from satm_tf import attacks, command_line
from satm_tf.configurable import unknown_name
from satm_tf.data import ImageData
from satm_tf.experiment import config
from satm_tf.experiment.card import facts_from_run
from satm_tf.experiment.images import load_data, make_batches
from satm_tf.experiment.run_folder import RunFolder
from satm_tf.models import ImageClassifier
from satm_tf.serving import comparison, export_saved_model
from satm_tf.serving.formats import FORMATS, convert


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
    images: int = 300,
    queries: int = 200,
) -> dict[str, str]:
    """Exports networks as SavedModels, and into other formats if asked to.

    Args:
        source: A run folder of python -m satm_tf.train, or a .keras file of one classifier.
        scheme: The scheme whose networks are exported; a run folder needs it.
        networks: Which of them; null for all.
        folder: The folder that holds a folder for each model.
        name: The model's name; for a .keras file, whose own name is taken if null.
        labels: A name for each class; null asks the run's data. A .keras file needs them.
        version: Version of each model; null takes the next free one.
        formats: Other formats to write and to compare under attack, from a run folder only; litert_float32,
            litert_float16, litert_int8, onnx.
        images: How many of the run's test images the formats are compared on, and training images the ranges of
            litert_int8 are found on.
        queries: Queries that an attack without gradients may put to each format for an image; 0 leaves it out.

    Returns:
        The folder of each version, by the model's name.

    Raises:
        ValueError: If scheme, network or format is unknown, or labels are missing.
        FileNotFoundError: If the source is neither.
        FileExistsError: If the version exists.
        VerificationError: If what was written does not answer as the model does.
    """
    unknown = [kind for kind in formats or () if kind not in FORMATS]
    if unknown:
        raise unknown_name("format", unknown[0], FORMATS)
    path = Path(source)
    if path.suffix == ".keras" and path.is_file():
        if labels is None or formats or scheme or networks:
            raise ValueError(
                "A .keras file is exported with --labels and without --scheme, --networks and --formats, which are of "
                f"a run folder. Received: labels={labels}, scheme={scheme}, networks={networks}, formats={formats}"
            )
        return {name or path.stem: _export(path, Path(folder) / (name or path.stem), labels, version, {})}
    if not (path / "config.yaml").exists():
        raise FileNotFoundError(f"A source is a run folder, with a config.yaml, or a .keras file. Received: {source}")
    if name is not None:
        raise ValueError(f"The models of a run are named as its networks. Received: --name {name}")
    files = _network_files(path, scheme, networks)
    described = config.from_arguments(["--config", str(path / "config.yaml")])
    data, names = None, labels
    if names is None or formats:
        data = load_data(described.data, RunFolder(path), described.seed)
        names = names or list(data.class_names)
    exported = {}
    for network, file in files.items():
        card = facts_from_run(path, str(scheme), network)
        exported[network] = _export(file, Path(folder) / network, names, version, card)
        if formats and data is not None:
            frame = _convert(file, Path(exported[network]), formats, described, data, images, queries)
            print(frame.to_string(index=False, float_format="{:.3f}".format))
    return exported


def _network_files(run: Path, scheme: str | None, networks: list[str] | None) -> dict[str, Path]:
    schemes = sorted(path.name for path in (run / "networks" / "co_train").glob("[!.]*"))
    if scheme not in schemes:
        raise unknown_name("scheme (--scheme)", scheme, schemes)
    found = {path.stem: path for path in sorted((run / "networks" / "co_train" / scheme).glob("*.keras"))}
    unknown = [network for network in networks or () if network not in found]
    if unknown:
        raise unknown_name("network", unknown[0], found)
    return {network: found[network] for network in networks or found}


def _export(file: Path, folder: Path, labels: list[str], version: int | None, card: Mapping[str, Any]) -> str:
    network = keras.saving.load_model(file, compile=False)
    if not isinstance(network, ImageClassifier):
        raise ValueError(f"Only an ImageClassifier can be exported. Received: {type(network).__name__} in {file}")
    exported = export_saved_model(network, folder, labels=labels, version=version, card=card)
    print(f"exported {exported}; start a server with {exported.parent.parent / 'serve.sh'}")
    return str(exported)


def _convert(
    file: Path,
    exported: Path,
    kinds: list[str],
    described: config.Config,
    data: ImageData,
    count: int,
    queries: int,
) -> pd.DataFrame:
    """Writes `<model>/formats/<version>/`, the files and `comparison.csv`, as a whole."""
    network = keras.saving.load_model(file, compile=False)
    train, test = (_arrays(examples.limit(count, described.seed), described) for examples in (data.train, data.test))
    attack = config.make_attack(described.attack)
    query = attacks.get("square", epsilon=attack.epsilon, queries=queries) if queries else None
    final = exported.parent / "formats" / exported.name
    final.parent.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{exported.name}-", dir=final.parent))
    try:
        files = {
            kind: convert(
                network,
                temporary / exported.parent.name,
                kind,
                samples=test[0][:8],
                calibration=train[0] if FORMATS[kind].calibrated else None,
            )
            for kind in kinds
        }
        frame = comparison.compare(network, files, *test, attack=attack, query_attack=query)
        frame.to_csv(temporary / "comparison.csv", index=False)
        temporary.chmod(0o755)
        os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return frame


def _arrays(examples: Any, described: config.Config) -> tuple[np.ndarray, np.ndarray]:
    batches = list(make_batches(examples, described))
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return command_line.run(
        lambda given: jsonargparse.CLI(export, args=given, prog="python -m satm_tf.export"),
        arguments,
        page=__doc__,
    )


if __name__ == "__main__":
    sys.exit(main())
