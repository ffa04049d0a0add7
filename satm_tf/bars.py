"""Progress bars: one for the whole run, one for the current part; without a terminal, lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_SECONDS_BETWEEN = 0.5
# The share of the remaining work to finish before estimating the time left, because a first step is slow.
_ENOUGH = 0.02


class Bar(tqdm):
    """A progress bar, which reports its progress to the bar of the whole run.

    It disappears when closed if it is below the bar of the whole run, and is shown only in a terminal or a notebook.

    Args:
        total: How many steps there are.
        name: The label of the bar.
        unit: The name of a step.
        **options: As tqdm takes them.

    Example:
        >>> with Bar(len(dataset), "measure", "batch") as bar:
        ...     for images, labels in dataset:
        ...         bar.update()
    """

    def __init__(self, total: int | None, name: str, unit: str, **options: Any):
        given = {"dynamic_ncols": True, "disable": _hidden(), "leave": None, **options}
        super().__init__(total=total, desc=name, unit=unit, **given)
        self._whole = _current.get()
        if self._whole is not None:
            self._whole.opened(self)

    def update(self, n: float | None = 1) -> bool | None:
        """As tqdm's."""
        shown = super().update(n)
        if self._whole is not None and self.total:
            self._whole.advance(self.n / self.total)
        return shown


class Whole:
    """The progress of a run, and the approximate time left, estimated from its finished parts.

    Args:
        parts: The work of each part, by name, in any unit, in order.
        done: The parts that are already finished.
    """

    def __init__(self, parts: Mapping[str, float], done: Collection[str] = ()):
        self._parts = dict(parts)
        self._to_do = {name: 0.0 if name in done else work for name, work in parts.items()}
        self._began = time.monotonic()
        self._name: str | None = None
        self._before = self._skipped = 0.0
        self._fraction, self._bars, self._expected = 0.0, 0, 1
        self._left: float | None = None
        self._left_at = self._shown_at = self._began
        self._opened: list[Bar] = []
        self._bar = tqdm(
            total=1.0, desc="", bar_format="{percentage:3.0f}%|{bar}| {desc}", dynamic_ncols=True, disable=None,
            leave=False,
        )  # fmt: skip

    def begin(self, name: str, expected: int) -> None:
        """Starts this part, which shows this many bars."""
        if name == self._name or not self._to_do.get(name):
            return
        names = list(self._parts)
        self._name, self._before = name, sum(self._to_do[each] for each in names[: names.index(name)])
        self._bars, self._expected = 0, expected
        self.advance(0.0)
        if self._bar.disable:
            print(self.described(with_name=True), flush=True)
        else:
            self._show()

    def opened(self, bar: Bar) -> None:
        """Adds a bar of this part below."""
        self._opened.append(bar)
        self._bars += 1
        if self._name is not None and bar.total:  # A resumed bar starts in the middle.
            self._skipped += self._to_do[self._name] * bar.n / bar.total / self._expected

    def advance(self, fraction: float) -> None:
        """Reports the progress of the part's current bar."""
        if self._name is None:
            return
        finished = max(self._bars - 1, 0)
        self._fraction = min((finished + fraction) / self._expected, 1.0)
        now, done = time.monotonic(), self._done()
        left = sum(self._to_do.values()) - done
        measured = done - self._skipped
        if measured > 0 and measured >= _ENOUGH * left:
            self._left, self._left_at = (now - self._began) / measured * left, now
        if now - self._shown_at >= _SECONDS_BETWEEN:
            self._show()

    def described(self, with_name: bool = False) -> str:
        """The number of the part, and the approximate time left once it is known."""
        number = 0 if self._name is None else 1 + list(self._parts).index(self._name)
        text = f"stage {number} of {len(self._parts)}{f': {self._name}' if with_name else ''}"
        if self._left is None:
            return text
        return f"{text}, {in_words(max(self._left - (time.monotonic() - self._left_at), 0.0))} left"

    def close(self) -> None:
        """Removes all bars, that of the whole run last."""
        for bar in reversed(self._opened):
            bar.close()
        self._bar.close()

    def _done(self) -> float:
        return self._before + (self._fraction * self._to_do[self._name] if self._name else 0.0)

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        there = sum(self._parts.values()) - sum(self._to_do.values())
        self._bar.n = min((there + self._done()) / sum(self._parts.values()), 1.0)
        self._bar.set_description_str(self.described())


_current: ContextVar[Whole | None] = ContextVar("whole", default=None)


@contextlib.contextmanager
def whole(parts: Mapping[str, float], done: Collection[str] = ()) -> Iterator[Whole]:
    """Shows the progress of a run, from parts that call `begin` and the bars in them.

    Args:
        parts: As `Whole` takes them.
        done: Likewise.

    Example:
        >>> with whole({"train": 10.0, "measure": 2.0}):
        ...     begin("train")
        ...     begin("measure")
        stage 1 of 2: train
        stage 2 of 2: measure, about 4 min left
    """
    opened = Whole(parts, done)
    token = _current.set(opened)
    try:
        yield opened
    finally:
        _current.reset(token)
        opened.close()


def _hidden() -> bool | None:
    """As tqdm's `disable`: not in a notebook; None leaves it to tqdm, which looks for a terminal or a widget.

    Two bars below each other need one of these. In a notebook without widgets a run has its lines instead.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return False if hasattr(shell, "kernel") and _current.get() is None else None


def begin(name: str, expected: int = 1) -> None:
    """Starts a part of the run; does nothing outside a run or if the run has no such part.

    Args:
        name: The part.
        expected: The number of bars that it shows in turn.
    """
    current = _current.get()
    if current is not None:
        current.begin(name, expected)


def say(text: str) -> None:
    """Prints above the bars."""
    tqdm.write(text)


def in_words(seconds: float) -> str:
    """An approximate duration in words.

    Example:
        >>> in_words(250), in_words(20), in_words(3 * 3600)
        ('about 4 min', 'less than a minute', 'about 3.0 h')
    """
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute"
    return f"about {minutes:.0f} min" if minutes < 100 else f"about {minutes / 60:.1f} h"


def shortened(text: str, width: int) -> str:
    """Shortens a text to this many characters by leaving out its middle.

    Example:
        >>> shortened("fine_tune/efficientnet_v2_b0_imagenet", 20)
        'fine_tun...b0_imagenet'
    """
    if len(text) <= width:
        return text
    kept = max(width - 3, 2)
    return f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
