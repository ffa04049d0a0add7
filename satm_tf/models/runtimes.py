"""Models of other runtimes: SavedModels, LiteRT and ONNX files, each as a function of a batch of images."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from satm_tf.configurable import look_up, unknown_name

Run = Callable[[np.ndarray], np.ndarray]
Shape = tuple[int | None, ...]


def newest_version(folder: str | Path) -> Path | None:
    """The folder of a SavedModel: this one, or its highest-numbered version; None if there is none."""
    folder = Path(folder)
    if (folder / "saved_model.pb").exists():
        return folder
    versions = [file.parent for file in folder.glob("*/saved_model.pb") if file.parent.name.isdigit()]
    return max(versions, key=lambda version: int(version.name), default=None)


@contextlib.contextmanager
def loading(path: str | Path) -> Iterator[None]:
    """Turns any error of a library that cannot load a file into one that says what to do.

    Raises:
        ValueError: For any error other than a missing package.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{path} needs a package that is not installed: {error}") from error
    except Exception as error:  # each library raises its own
        raise ValueError(
            f"{path} cannot be loaded. If it is damaged, copy or export it again; if it has custom layers, first "
            f"import the module that registers them. Received: {first_line(error)}"
        ) from error


def load_keras(path: str | Path) -> keras.Model:
    """Loads a `.keras` file after verifying its checksums.

    Raises:
        ValueError: If it is damaged, or cannot be loaded.
    """
    with loading(path):
        with zipfile.ZipFile(path) as archive:
            # Keras detects only some damage, and otherwise reads wrong weights.
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"The checksum of {damaged} does not match its content.")
        return keras.saving.load_model(path, compile=False)


def first_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def choose_output(names: Iterable[str], output: str | None, of: str | Path) -> str:
    """The output of a model to use: the requested one, or else the only one, `logits` or `probabilities`.

    Raises:
        ValueError: If there is no such output, or several and none of these names.
    """
    names = sorted(names)
    if output is not None:
        if output not in names:
            raise unknown_name(f"output of {of}", output, names)
        return output
    found = names if len(names) == 1 else [name for name in ("logits", "probabilities") if name in names]
    if not found:
        raise ValueError(f"{of} has several outputs; choose one of {', '.join(names)} as {of}#OUTPUT. Received: none")
    return found[0]


class SavedModel:
    """One output of one signature of a SavedModel, as a function whose gradient reaches the images.

    `choose_output` chooses the output. The signature must take a single tensor, the images.

    Attributes:
        image_shape: `(height, width, channels)` that the signature takes, each None where any will do.

    Raises:
        ValueError: If there is no such signature or output, or the signature takes more than one tensor.
    """

    def __init__(self, folder: str | Path, output: str | None, signature: str):
        # The loaded object owns the variables, so keep a reference to it.
        with loading(folder):
            self._loaded: Any = tf.saved_model.load(str(folder))
        self._function = look_up(f"signature of {folder}", signature, self._loaded.signatures)
        self._output = choose_output(self._function.structured_outputs, output, folder)
        self._input, specification = _images_of(self._function.structured_input_signature[1], folder)
        self.image_shape: Shape = tuple(specification.shape[1:])

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The output `[batch, classes]`; a SavedModel ignores `training`."""
        return self._function(**{self._input: images})[self._output]


class RuntimeModel:
    """A LiteRT or ONNX file, run by its own runtime on NumPy arrays: no gradient reaches the images.

    `choose_output` chooses the output; only LiteRT files have a signature. The model takes one batch of float32 images.

    Attributes:
        image_shape: `(height, width, channels)` that the model takes, each None where any will do.
        run: The model as a function of a float32 array `[batch, height, width, channels]`.

    Raises:
        ValueError: If the model has other inputs or outputs.
        ImportError: If its runtime, of the extra `lite` or `onnx`, is not installed.
    """

    def __init__(self, path: str | Path, output: str | None = None, signature: str = "serving_default"):
        path = Path(path)
        self.run: Run
        self.run, self.image_shape = look_up("suffix", path.suffix, RUNTIMES)(path, output, signature)

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The output `[batch, classes]`, also within a graph."""
        return tf.numpy_function(self.run, [images], tf.float32)


def _litert(path: Path, output: str | None, signature: str) -> tuple[Run, Shape]:
    with loading(path):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=os.cpu_count())
    signatures = interpreter.get_signature_list()
    name = choose_output(look_up(f"signature of {path}", signature, signatures)["outputs"], output, path)
    runner = interpreter.get_signature_runner(signature)
    images, details = _images_of(runner.get_input_details(), path)
    shape = tuple(int(side) if side > 0 else None for side in details["shape_signature"][1:])
    return lambda batch: runner(**{images: np.asarray(batch, np.float32)})[name], shape


def _onnx(path: Path, output: str | None, signature: str) -> tuple[Run, Shape]:
    with loading(path):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = choose_output((each.name for each in session.get_outputs()), output, path)
    images, node = _images_of({each.name: each for each in session.get_inputs()}, path)
    # A side of any size has a name, or None, instead of a number.
    shape = tuple(side if isinstance(side, int) else None for side in node.shape[1:])
    return lambda batch: session.run([name], {images: np.asarray(batch, np.float32)})[0], shape


def _images_of(inputs: Mapping[str, Any], of: str | Path) -> tuple[str, Any]:
    if len(inputs) != 1:
        raise ValueError(f"{of} must take a single tensor, the images. Received: {', '.join(inputs)}")
    return next(iter(inputs.items()))


RUNTIMES: dict[str, Callable[[Path, str | None, str], tuple[Run, Shape]]] = {".tflite": _litert, ".onnx": _onnx}
"""The function that opens a file, by the file's suffix."""
