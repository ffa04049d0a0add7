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
    def timed(self, limit: float, contents: Any) -> Iterator[None]:
        """Fails with the input if what is done with it takes longer than `limit` seconds.

        What takes ten times as long, in a library that cannot be interrupted, ends the process with its stack.
        """
        faulthandler.dump_traceback_later(10 * limit, exit=True)
        began = time.perf_counter()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        seconds = time.perf_counter() - began
        self.slowest = max(self.slowest, seconds)
        assert seconds < limit, contents
