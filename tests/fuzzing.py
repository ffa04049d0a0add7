"""What the fuzzers of all boundaries count."""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any


class Outcomes(Counter[str]):
    """What came out, and how often.

    Attributes:
        slowest: Seconds that the slowest input took.
    """

    slowest = 0.0

    @contextlib.contextmanager
    def timed(self, limit: float, contents: Any, *, waits: bool = False) -> Iterator[None]:
        """Fails with the input if what is done with it takes longer than `limit` seconds.

        These are the processor's, which other processes do not lengthen, unless it waits for an answer. What takes ten
        times as long by the clock, in a library that cannot be interrupted, ends the process with its stack.
        """
        clock = time.perf_counter if waits else time.process_time
        faulthandler.dump_traceback_later(10 * limit, exit=True)
        began = clock()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        seconds = clock() - began
        self.slowest = max(self.slowest, seconds)
        assert seconds < limit, contents
