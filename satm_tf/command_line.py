"""How a command starts and ends: its page of help, what it prints of its errors, and its exit code."""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence

from satm_tf.serving import ServingError, VerificationError
from satm_tf.training import Interrupted

# What has a message that says all: a mistake in what was given, or something that is missing, full or away.
_EXPLAINED = (ValueError, OSError, ImportError, FloatingPointError, ServingError, VerificationError)


EPILOG = "With --debug an error has its traceback."
"""For the help of a command without a page of its own."""


def run(
    work: Callable[[list[str]], object],
    arguments: Sequence[str] | None = None,
    *,
    page: str | None = None,
    goes_on: bool = False,
) -> int:
    """Does the work of a command: the options that all commands have, its errors, its exit code.

    Args:
        work: Takes the other arguments, and does it.
        arguments: As in `sys.argv[1:]`, which None takes.
        page: What `--help` prints. `work` then gets `--help` where `--help-all` was given; without a page it gets both.
        goes_on: Whether a command that was stopped goes on when it is given again.

    Returns:
        0 when it is done; 1 after an error, of which a line is printed, and the traceback with `--debug` alone; 130
        when it was stopped by hand, 143 by SIGTERM in a training, which is saved.

    Raises:
        SystemExit: With 2 where `work` does not understand the arguments, with 0 where it has explained them.
    """
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--debug", action="store_true")
    common.add_argument("--help-all", action="store_true")
    if page is not None:
        common.add_argument("-h", "--help", action="store_true")
    asked, rest = common.parse_known_args(arguments)
    if asked.help_all:
        rest = ["--help"]
    elif page is not None and asked.help:
        print(page.strip())
        return 0
    try:
        work(rest)
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return 128 + interruption.signal_number
    except KeyboardInterrupt:  # where nothing trained, as in an evaluation
        print(f"stopped{'; the same command goes on from here' if goes_on else ''}", file=sys.stderr)
        return 130
    except Exception as error:
        if asked.debug:
            traceback.print_exc()
        elif isinstance(error, _EXPLAINED):
            print(f"error: {error}", file=sys.stderr)
        else:
            print(_unexplained(error), file=sys.stderr)
        return 1
    return 0


def _unexplained(error: Exception) -> str:
    """A line for what nobody foresaw, and where all of it is: it may have come after hours, and not come again."""
    first = str(error).strip().partition("\n")[0]
    with tempfile.NamedTemporaryFile("w", prefix="satm_tf-", suffix=".txt", delete=False, encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return f"error: {type(error).__name__}: {first}\nWhere it came from, for a report of it: {file.name}"
