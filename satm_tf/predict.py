"""satm-tf predict: classifies images, on a server or with an export."""

from __future__ import annotations

import sys
from typing import Literal

from satm_tf import command_line, storage
from satm_tf.serving import Client


def predict(
    *files: str,
    host: str | None = None,
    folder: str | None = None,
    model: str | None = None,
    version: int | None = None,
    transport: Literal["rest", "grpc"] = "rest",
    timeout: float = 10.0,
    retries: int = 3,
    output: str | None = None,
) -> None:
    """Classifies JPEG and PNG files, and prints the class of each with its probability.

    Args:
        *files: JPEG or PNG files.
        host: host:port of a TensorFlow Serving server.
        folder: An export on this disk, such as exported_models/compact_vgg, instead of a server.
        model: Name of the model on the server.
        version: Version of the model on the server; the newest if not given.
        transport: How the server is asked.
        timeout: Seconds to wait for the server's answer.
        retries: How many more attempts are made where the server cannot be reached or is busy.
        output: A CSV file to write, with the probability of every class.

    Raises:
        ValueError: If neither or both of host and folder are given, or options of a server without one.
        FileNotFoundError: If a file or the export does not exist.
        ServingError: If the server cannot be reached, or refuses.
    """
    if (host is None) == (folder is None):
        raise ValueError(f"Give either --host or --folder. Received: --host {host}, --folder {folder}")
    if (host is None) != (model is None):
        raise ValueError(f"A server is asked with --host and --model. Received: --host {host}, --model {model}")
    if folder is not None:
        client = Client.from_folder(folder)
    else:
        client = Client(str(host), str(model), transport=transport, version=version, timeout=timeout, retries=retries)
    answers = client.predict(files)
    if output:
        storage.write_text(output, answers.to_csv(index=False))
    shown = answers[["file", "label", "probability"]].copy()
    shown["label"] = shown.label.where(answers.valid, "(not an image)")
    shown["probability"] = shown.probability.map("{:.1%}".format).where(answers.valid, "")
    print(shown.to_string(index=False))


main = command_line.command(predict)

if __name__ == "__main__":
    sys.exit(main())
