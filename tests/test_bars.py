"""The bar of the whole and those below it: their numbers, the time left, what stays on the screen."""

import io
import re

import pytest

from satm_tf import bars


class Clock:
    """A time that passes when it is told to."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bars, "time", clock)
    return clock


def test_a_log_has_a_line_before_each_part_with_the_time_left_by_what_is_done(clock, capsys):
    """Of 40 units, 10 took 60 s; so the other 30 take 180 s."""
    with bars.whole({"train": 10.0, "measure": 25.0, "export": 5.0}):
        bars.begin("train")
        with bars.Bar(4, "train", "step") as bar:
            bar.update(4)
        clock.now += 60
        bars.begin("measure")
        clock.now += 240
        bars.begin("export")
        bars.begin("export")
        bars.begin("unheard of")
    assert capsys.readouterr().out.splitlines() == [
        "stage 1 of 3: train",
        "stage 2 of 3: measure, about 3 min left",
        "stage 3 of 3: export, less than a minute left",
    ]


def test_what_was_done_before_counts_as_done_and_not_for_the_speed(clock, capsys):
    """The 10 units of b took 60 s, and 10 of d remain: those of a and c are there."""
    with bars.whole(dict.fromkeys("abcd", 10.0), done={"a", "c"}):
        bars.begin("a")
        bars.begin("b")
        clock.now += 60
        bars.begin("c")
        bars.begin("d")
    assert capsys.readouterr().out.splitlines() == ["stage 2 of 4: b", "stage 4 of 4: d, about 1 min left"]


def test_bars_move_the_whole_and_a_resumed_one_says_nothing_of_the_speed(clock):
    """Two bars to the part of 30 units, the first of which begins at its middle: 7.5 units in 60 s, 15 + 10 remain."""
    with bars.whole({"measure": 30.0, "export": 10.0}) as whole:
        bars.begin("measure", expected=2)
        with bars.Bar(8, "measure", "batch", initial=4, file=io.StringIO(), disable=False) as bar:
            clock.now += 60
            bar.update(4)
            assert whole.described() == "stage 1 of 2, about 3 min left"
            clock.now += 110
            assert whole.described() == "stage 1 of 2, about 2 min left", "it goes down between two looks"


def test_a_terminal_has_two_bars_and_neither_at_the_end(clock, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    with bars.whole({"train": 3.0, "measure": 1.0}) as whole:
        bars.begin("train")
        bar = bars.Bar(10, "train", "step", file=screen, ncols=60, dynamic_ncols=False)
        assert (abs(whole._bar.pos), abs(bar.pos)) == (0, 1)
        clock.now += 120
        bar.update(5)
        bars.say("said above")
    assert re.search(r" 38%\|.*\| stage 1 of 2, about 3 min left", screen.getvalue()), "5 of 10 steps of 3 of 4 units"
    last = screen.getvalue().split("\r")[-1]
    assert "%" not in last
    assert bar.disable, "a bar that an error left open is closed too"


class Shell:
    """What IPython gives inside a notebook."""

    kernel = object()


def test_a_notebook_without_widgets_shows_a_bar_and_for_a_run_its_lines(monkeypatch, capsys):
    monkeypatch.setattr("IPython.get_ipython", Shell)
    with bars.Bar(2, "measure", "batch") as bar:
        bar.update()
    assert "measure" in capsys.readouterr().err
    with bars.whole({"train": 1.0}):
        bars.begin("train")
        with bars.Bar(2, "train", "step") as bar:
            assert bar.disable, "two bars below each other need a terminal"
    assert capsys.readouterr() == ("stage 1 of 1: train\n", "")


def test_outside_of_a_run_nothing_is_said(capsys):
    bars.begin("measure")
    with bars.Bar(1, "measure", "batch") as bar:
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_a_first_slow_step_does_not_tell_how_long_the_rest_takes_nor_does_what_was_done_before(clock):
    with bars.whole({"train": 100.0}) as whole:
        bars.begin("train")
        with bars.Bar(100, "train", "step", file=io.StringIO(), disable=False) as bar:
            clock.now += 30
            bar.update()
            assert whole.described() == "stage 1 of 1"
            clock.now += 3
            bar.update(2)
            assert whole.described() == "stage 1 of 1, about 18 min left", "97 of 3 in 33 s"
    with bars.whole({"train": 100.0}) as whole:
        bars.begin("train")
        with bars.Bar(100, "train", "step", file=io.StringIO(), disable=False, initial=100) as bar:
            bar.update(0)
        assert whole.described() == "stage 1 of 1"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59, "less than a minute"), (61, "about 1 min"), (5990, "about 100 min"), (3600 * 2.5, "about 2.5 h")],
)
def test_time_in_words(seconds, words):
    assert bars.in_words(seconds) == words


def test_long_texts_lose_their_middle():
    assert bars.shortened("abcdefghij", 10) == "abcdefghij"
    assert bars.shortened("abcdefghijk", 10) == "abc...hijk"
