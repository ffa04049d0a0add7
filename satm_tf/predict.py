"""satm-tf predict: classifies images with a server or an export."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from satm_tf import command_line, storage
from satm_tf.models.runtimes import newest_version
from satm_tf.serving import Client
from satm_tf.serving.answers import shown


def predict(
    *files: str,
    host: str | None = None,
    folder: str | None = None,
    model: str | None = None,
    version: int | None = None,
    transport: Literal["rest", "grpc"] = "rest",
    timeout: float = 10.0,
    retries: int = 3,
    top: int = 1,
    json: bool = False,
    output: str | None = None,
) -> None:
    """Classifies JPEG and PNG files, and prints the most probable classes of each on one line.

    Args:
        *files: JPEG or PNG files.
        host: host:port of a TensorFlow Serving server.
        folder: A local export, such as exported_models/compact_vgg, instead of a server.
        model: The name of the model on the server.
        version: The version of the model on the server; the newest if not given.
        transport: The protocol to use with the server.
        timeout: Seconds to wait for the server's answer.
        retries: Number of further attempts if the server cannot be reached or is busy.
        top: Number of classes to show for each file.
        json: Print a JSON list, with an object for each file, instead of lines.
        output: A CSV file to write, with the probability of every class.

    Raises:
        ValueError: If top is below 1, neither or both of host and folder are given, or only one of host and model.
        FileNotFoundError: If a file or the export does not exist.
        ServingError: If the server cannot be reached, or refuses.
    """
    if top < 1:
        raise ValueError(f"Show at least one class. Received: --top {top}")
    if (host is None) == (folder is None):
        raise ValueError(f"Give either --host or --folder. Received: --host {host}, --folder {folder}")
    if (host is None) != (model is None):
        raise ValueError(f"A server needs both --host and --model. Received: --host {host}, --model {model}")
    if folder is not None:
        client = Client.from_folder(folder)
    else:
        client = Client(str(host), str(model), transport=transport, version=version, timeout=timeout, retries=retries)
    answers = client.predict(files)
    if output:
        storage.write_text(output, answers.to_csv(index=False))
    labels = dict(zip(answers.class_id[answers.valid], answers.label[answers.valid], strict=True))
    if folder is not None:
        exported = newest_version(Path(folder))
        labels |= dict(enumerate((Path(str(exported)) / "assets" / "labels.txt").read_text("utf-8").splitlines()))
    found = [_classes(row, labels, top) for _, row in answers.iterrows()]
    print(_as_json(answers, found) if json else _as_lines(answers, found))


def _classes(row: pd.Series, labels: dict[int, str], top: int) -> list[tuple[str, float]]:
    """The most probable classes of an image, with their probabilities; a server names only the first one."""
    if not row.valid:
        return []
    rates = row.filter(regex=r"^probability_\d+$").to_numpy(float)
    return [(labels.get(index, f"class {index}"), float(rates[index])) for index in rates.argsort()[::-1][:top]]


def _as_lines(answers: pd.DataFrame, found: list[list[tuple[str, float]]]) -> str:
    width = max(map(len, answers.file))
    marked = answers.get("suspicious", [False] * len(answers))  # only a model with a detector marks images
    return "\n".join(
        f"{file:<{width}}  "
        + (", ".join(f"{shown(label)} {rate:.1%}" for label, rate in classes) or "(not an image)")
        + ("  (suspicious)" if suspicious else "")
        for file, classes, suspicious in zip(answers.file, found, marked, strict=True)
    )


def _as_json(answers: pd.DataFrame, found: list[list[tuple[str, float]]]) -> str:
    rows: list[dict[str, Any]] = [
        {"file": file, "valid": bool(classes), "classes": [{"label": label, "probability": p} for label, p in classes]}
        for file, classes in zip(answers.file, found, strict=True)
    ]
    if "suspicious" in answers:
        for row, score, suspicious in zip(rows, answers.adversarial_score, answers.suspicious, strict=True):
            row |= {"adversarial_score": score if row["valid"] else None, "suspicious": suspicious}
    return json.dumps(rows, indent=2, ensure_ascii=False)


main = command_line.command(predict)

if __name__ == "__main__":
    sys.exit(main())
