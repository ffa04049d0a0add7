"""python -m satm_tf.predict: classifies images, on a server or with an export."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import pandas as pd

from satm_tf import command_line
from satm_tf.serving import Client


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return command_line.run(_predict, arguments)


def _predict(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.host and not options.model:
        _parser().error("a server has several models: give --model too")
    if options.host:
        client = Client(
            options.host,
            options.model,
            transport=options.transport,
            version=options.version,
            timeout=options.timeout,
            retries=options.retries,
        )
    else:
        client = Client.from_folder(options.folder)
    answers = client.predict(options.files)
    if options.output:
        _write(answers, Path(options.output))
    print(_table(answers).to_string(index=False))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m satm_tf.predict", description=__doc__, epilog=command_line.EPILOG)
    parser.add_argument("files", nargs="+", metavar="FILE", help="JPEG or PNG files")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--host", help="host:port of a TensorFlow Serving server")
    where.add_argument("--folder", help="an export on this disk, such as exported_models/compact_vgg")
    parser.add_argument("--model", help="name of the model on the server")
    parser.add_argument("--version", type=int, help="version of the model on the server; the newest if not given")
    parser.add_argument("--transport", choices=["rest", "grpc"], default="rest")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for an answer")
    parser.add_argument("--retries", type=int, default=3, help="more attempts where the server is away or busy")
    parser.add_argument("--output", help="a CSV file to write, with the probability of every class")
    return parser


def _table(answers: pd.DataFrame) -> pd.DataFrame:
    shown = answers[["file", "label", "probability"]].copy()
    shown["label"] = shown.label.where(answers.valid, "(not an image)")
    shown["probability"] = shown.probability.map("{:.1%}".format).where(answers.valid, "")
    return shown


def _write(answers: pd.DataFrame, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        answers.to_csv(Path(folder) / path.name, index=False)
        os.replace(Path(folder) / path.name, path)


if __name__ == "__main__":
    sys.exit(main())
