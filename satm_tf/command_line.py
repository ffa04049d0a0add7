"""How a command ends: what it prints of its errors, and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from satm_tf.training import Interrupted


def exit_code(work: Callable[[], object]) -> int:
    """Does the work of a command that can be stopped and goes on when it is given again.

    Returns:
        0 when it is done, 1 after an error (which is printed, without a traceback), 128 and the signal's number when
        SIGINT or SIGTERM stopped it in a training that is saved, 130 when it was stopped by hand elsewhere.
    """
    try:
        work()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return 128 + interruption.signal_number
    except KeyboardInterrupt:  # where nothing trained, as in an evaluation
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
