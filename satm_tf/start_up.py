"""How a command starts: without the messages of TensorFlow's import, and with an allocator that keeps freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# The severity of a message: "I0000 00:00:17 ... port.cc:153] ...", "2025-01-01 12:00:00.0: I tensorflow/...".
_SEVERITY = re.compile(rb"([IWEF])\d{4} \d\d:\d\d:|\d{4}-\d\d-\d\d \S+: ([IWEF]) ")
_NOT_READY = b"WARNING: All log messages before absl::InitializeLog()"
# Messages about a missing GPU or duplicate registration, which are errors in name only.
_HARMLESS = re.compile(rb"failed call to cuInit|Unable to register cu\w+ factory")
_GPU_FILES = ("/dev/nvidia*", "/dev/dxg", "/dev/kfd")


def is_command() -> bool:
    """Whether this process runs a command of the package, rather than importing it for another purpose."""
    program = Path(sys.argv[0]).stem if sys.argv else ""
    # While Python looks for the module of `python -m satm_tf.train`, this is the program's name.
    if program == "-m":
        return any(word.removeprefix("-m").partition(".")[0] == "satm_tf" for word in sys.orig_argv[1:])
    return program == "satm-tf"


def has_gpu() -> bool:
    """Whether this machine has the files of a GPU driver."""
    return any(glob.glob(pattern) for pattern in _GPU_FILES)


def shown(line: bytes, level: int, gpu: bool) -> bool:
    """Whether to show a line of TensorFlow's start-up messages.

    Args:
        line: The line.
        level: The lowest severity that is shown, as `TF_CPP_MIN_LOG_LEVEL` counts: 0 is everything, 2 only errors.
        gpu: Whether there is a GPU, for which errors that are harmless elsewhere matter.
    """
    if line.startswith(_NOT_READY):
        return level == 0
    severity = _SEVERITY.match(line)
    if severity is None:
        return True
    harmless = level > 0 and not gpu and _HARMLESS.search(line)
    return b"IWEF".index(severity[1] or severity[2]) >= level and not harmless


@contextlib.contextmanager
def quieted() -> Iterator[None]:
    """Drops TensorFlow's start-up messages below `TF_CPP_MIN_LOG_LEVEL`, which is 2 if it is not set.

    TensorFlow reads the variable only after its libraries are loaded, when it has already printed. Another process
    forwards the lines, so that the last lines of an aborted process are shown too.
    """
    # `python -m satm_tf.harden` runs a module that the package has imported already, for a function of that name.
    warnings.filterwarnings("ignore", r"'satm_tf\.\w+' found in sys\.modules", RuntimeWarning)
    level = os.environ.setdefault(LEVEL, "2")
    if level == "0" or not level.isdigit() or not hasattr(os, "fork") or sys.stderr is None:
        yield
        return
    sys.stderr.flush()
    end, pipe = os.pipe()
    reader = os.fork()
    if not reader:
        os.close(pipe)
        _pass_on(end, int(level), has_gpu())
    os.close(end)
    stderr = os.dup(2)
    os.dup2(pipe, 2)
    os.close(pipe)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.waitpid(reader, 0)


def _pass_on(end: int, level: int, gpu: bool) -> None:
    """Forwards the lines to show to stderr, and exits after the last one."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # The other process's messages about it are forwarded.
        with os.fdopen(end, "rb") as lines:
            for line in lines:
                if shown(line, level, gpu):
                    os.write(2, line)
    finally:
        os._exit(0)


def keep_freed_memory() -> None:
    """Lets glibc keep the memory that TensorFlow frees; elsewhere, nothing happens.

    By default, large blocks are returned to the system immediately, and each step fetches the same pages again. In two
    epochs of a compact network this took a third of the processor time; page faults fell from 6.7 to 0.3 million. The
    process keeps its peak size.

    Source:
        mallopt(3): M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_MAX.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((-1, 2**31 - 1), (-2, 2**26), (-4, 0)):
            mallopt(option, value)
