"""Checks of a model's answers from any source: names, kinds, shapes and ranges."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from satm_tf.serving.signatures import DETECTED, outputs


class ServingError(RuntimeError):
    """A server cannot be reached, refuses, or sends an invalid answer."""


class UnavailableError(ServingError):
    """A server could not be reached, broke off, or was too busy: another attempt may succeed.

    Attributes:
        wait: How many seconds to wait first.
    """

    def __init__(self, message: str, wait: float):
        super().__init__(message)
        self.wait = wait


class _Kind(NamedTuple):
    what: str
    json: tuple[type, ...]
    numpy: str
    dimensions: int


_KINDS = {
    "probabilities": _Kind("numbers [images, classes]", (int, float), "f", 2),
    "features": _Kind("numbers [images, features]", (int, float), "f", 2),
    "adversarial_score": _Kind("numbers [images]", (int, float), "f", 1),
    "suspicious": _Kind("true or false [images]", (bool,), "b", 1),
    "class_id": _Kind("whole numbers [images]", (int,), "i", 1),
    "label": _Kind("strings [images]", (str,), "O", 1),
    "valid": _Kind("true or false [images]", (bool,), "b", 1),
}
# The tolerance for float32 sums of thousands of probabilities, and for quantised models.
SLACK = 1e-2
_SHORT = reprlib.Repr()


def from_json(body: bytes) -> dict[str, Any]:
    """The JSON object in an answer; empty if there is none.

    Raises:
        ServingError: If it holds NaN or infinity, which JSON does not allow, or is nested too deeply.
    """
    try:
        answer = json.loads(body, parse_constant=_refuse)
    except RecursionError as error:
        raise ServingError(f"The server's answer is nested too deeply. Received: {shown(body)}") from error
    except ValueError:  # not JSON, not text, or a number with more digits than Python reads
        return {}
    return answer if isinstance(answer, dict) else {}


def _refuse(constant: str) -> float:
    raise ServingError(f"The answer's numbers must be finite. Received: {constant}")


def from_lists(values: Any) -> dict[str, np.ndarray]:
    """The known outputs of a JSON answer as arrays.

    Raises:
        ServingError: If they are not an object of lists, or a list is ragged or mixes kinds of values.
    """
    if not isinstance(values, dict):
        raise ServingError(f"The outputs must be an object with a list for each. Received: {shown(values)}")
    return {name: _array(name, value) if name in _KINDS else np.zeros(0) for name, value in values.items()}


def _array(name: str, value: Any) -> np.ndarray:
    kind = _KINDS[name]
    rows = value if isinstance(value, list) else None
    if rows is not None and kind.dimensions == 2:
        ragged = any(not isinstance(row, list) or len(row) != len(rows[0]) for row in rows)
        values = None if ragged else [each for row in rows for each in row]
    else:
        values = rows
    # By type, not by isinstance: Python's bool is an int.
    if rows is None or values is None or any(type(each) not in kind.json for each in values):
        raise ServingError(f"{name} must be {kind.what}. Received: {shown(value)}")
    try:
        # Strings as objects: with a fixed width, each would take the memory of the longest.
        return np.array(rows, {"f": np.float64, "i": np.int64, "O": object, "b": bool}[kind.numpy])
    except OverflowError as error:
        raise ServingError(f"{name} must be {kind.what}. Received: {shown(value)}") from error


def check(signature: str, answer: Mapping[str, np.ndarray], images: int) -> dict[str, np.ndarray]:
    """Checks that the outputs of a signature are valid for this number of images, and returns them.

    A detector's outputs are among them if there are any; strings are returned as `str`.

    Raises:
        ServingError: If one is missing, or has the wrong kind, shape or range.
    """
    expected = outputs(signature, detected=not set(DETECTED).isdisjoint(answer))
    missing = set(expected) - set(answer)
    if missing:
        raise ServingError(
            f"This is not a model that satm_tf exported: its signature {signature!r} lacks "
            f"{', '.join(sorted(missing))}. Received: {shown(', '.join(sorted(answer)))}"
        )
    found = {name: np.asarray(answer[name]) for name in expected}
    for name, value in found.items():
        kind = _KINDS[name]
        if (
            value.ndim != kind.dimensions
            or len(value) != images
            or value.dtype.kind not in kind.numpy.replace("O", "OSU")
        ):
            raise ServingError(
                f"{name} must be {kind.what}, for {images} images. Received: {value.dtype} {list(value.shape)}"
            )
        if kind.numpy == "f" and not np.isfinite(value).all():
            raise ServingError(f"{name} must be finite. Received: {np.count_nonzero(~np.isfinite(value))} others")
        if kind.numpy == "O":
            found[name] = _texts(name, value)
    if "probabilities" in found:
        _check_classes(**found)
    return found


def _check_classes(probabilities: np.ndarray, class_id: np.ndarray, valid: np.ndarray, **others: np.ndarray) -> None:
    if probabilities.size and not (probabilities.min() >= -SLACK and probabilities.max() <= 1 + SLACK):
        raise ServingError(
            f"Probabilities must lie in [0, 1]. Received: {probabilities.min():g} to {probabilities.max():g}"
        )
    known = np.where(valid, (class_id >= 0) & (class_id < probabilities.shape[1]), class_id == -1)
    if not known.all():
        raise ServingError(
            f"A valid image must have one of {probabilities.shape[1]} classes, and an invalid one -1. Received: "
            f"class_id={class_id[~known][:5].tolist()}, valid={valid[~known][:5].tolist()}"
        )


def _texts(name: str, values: np.ndarray) -> np.ndarray:
    try:
        texts = [value.decode() if isinstance(value, bytes) else str(value).encode().decode() for value in values]
    except UnicodeError as error:  # also half of a surrogate pair, which JSON can encode
        raise ServingError(f"{name} must be strings in UTF-8. Received: {shown(list(values))}") from error
    return np.array(texts, object)


def shown(value: Any, most: int = 200) -> str:
    """A received value as one short line for a message, without terminal escape sequences."""
    text = value[: most + 1].decode(errors="replace") if isinstance(value, bytes) else value
    text = text if isinstance(text, str) else _SHORT.repr(text)
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:most])
    return line + ("..." if len(text) > most else "")
