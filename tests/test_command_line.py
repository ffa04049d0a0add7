import signal
from pathlib import Path

import pytest

from satm_tf.command_line import exit_code
from satm_tf.training import Interrupted


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no such scheme"), 1, "error: no such scheme\n"),
        (FileNotFoundError("no such folder"), 1, "error: no such folder\n"),
        (FloatingPointError("no number"), 1, "error: no number\n"),
        (ConnectionError("a worker has gone"), 1, "error: a worker has gone\n"),
        (Interrupted(signal.SIGTERM, Path("run")), 143, "SIGTERM received"),
        (Interrupted(signal.SIGINT, Path("run")), 130, "SIGINT received"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from here\n"),
    ],
)
def test_errors_are_lines_and_codes(error, code, said, capsys):
    def work():
        raise error

    assert exit_code(work) == code
    assert capsys.readouterr().err.startswith(said)


def test_what_is_done_is_zero_and_a_fault_of_ours_keeps_its_traceback():
    assert exit_code(lambda: "a frame") == 0
    with pytest.raises(KeyError):
        exit_code(lambda: {}["fault"])
