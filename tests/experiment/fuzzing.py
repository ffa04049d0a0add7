"""Changed configuration files, and what must be true of all that the command line makes of them."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import numpy as np

from satm_tf.experiment import config
from tests.fuzzing import Outcomes

LIMIT = 2.0
"""Seconds that one file may take, on a machine that does nothing else; tests allow more."""

_PUT_IN = (
    *("null", "-1", "1e999", ".nan", "true", "[]", "{}", "'", "\t", ": ", "- ", "&a ", "*a", "0x7", "<<: ", "\x00"),
    *("!!python/name:os.system ", "class_path: this.s", "{class_path: this.s, init_args: {}}", "a" * 300, "é"),
)


def fuzz_configurations(seed: int, count: int, folder: Path, limit: float = LIMIT) -> Outcomes:
    """Reads `count` changed presets; each becomes a configuration, or ends with a message and exit code 2."""
    rng, outcomes = np.random.default_rng(seed), Outcomes()
    presets = [path.read_text(encoding="utf-8") for path in sorted(config.PRESETS.values())]
    path = folder / "changed.yaml"
    for _ in range(count):
        text = presets[rng.integers(len(presets))]
        for _ in range(rng.integers(1, 4)):
            lines = text.splitlines()
            row, kind = int(rng.integers(len(lines))), rng.integers(5)
            at, part = int(rng.integers(len(lines[row]) + 1)), str(rng.choice(_PUT_IN))
            if kind == 0:
                lines[row] = lines[row][:at] + part + lines[row][at:]
            elif kind == 1:  # the value of a field
                lines[row] = f"{lines[row].partition(':')[0]}: {part}"
            elif kind == 2:
                del lines[row]
            elif kind == 3:
                lines.insert(row, lines[int(rng.integers(len(lines)))])
            else:
                lines[row] = f"{' ' * int(rng.integers(4))}{lines[row]}"
            text = "\n".join(lines) or " "
        path.write_text(text, encoding="utf-8")
        printed = io.StringIO()
        refusal = None
        with outcomes.timed(limit, text):
            try:
                with contextlib.redirect_stderr(printed):
                    config.from_arguments(["--config", str(path)])
            except SystemExit as stopped:
                refusal = stopped.code == 2 and printed.getvalue().strip()
            except ValueError as error:  # which the command prints as one line
                refusal = str(error)
        assert refusal or refusal is None, text
        outcomes["refused" if refusal else "a configuration"] += 1
        assert "this" not in sys.modules, text
    return outcomes
