from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from satm_tf import storage


def test_one_process_at_a_time(tmp_path):
    script = textwrap.dedent(
        f"""
        import pathlib
        from satm_tf.storage import lock
        try:
            with lock(pathlib.Path({str(tmp_path)!r})):
                print("taken")
        except ValueError as error:
            print(error)
        """
    )

    def other():
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    with storage.lock(tmp_path):
        assert "Another process is at work in" in other()
    assert other() == "taken\n"


HOLD = """
import fcntl, os, sys
try:
    fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("held", flush=True)
    sys.stdin.read()
except BlockingIOError:
    print("refused", flush=True)
"""


def _hold(folder):
    """Another process that holds a folder as `atomic_folder` holds the one it fills; it need not import TensorFlow."""
    arguments = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_fills_is_not(tmp_path):
    pytest.importorskip("fcntl")
    with storage.atomic_folder(tmp_path / "1") as temporary:
        assert _hold(temporary)[1] == "refused"
        suffix = temporary.suffix
    left, filled, unrelated = (tmp_path / f".2-{name}" for name in (f"left{suffix}", f"live{suffix}", "template"))
    for folder in (left, filled, unrelated):
        folder.mkdir()
        (folder / "half").write_text("x")
    other, said = _hold(filled)
    assert said == "held"
    with storage.atomic_folder(tmp_path / "3") as temporary:
        assert not left.exists()
        with storage.atomic_folder(tmp_path / "4"):
            assert temporary.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["1", "3", "4", filled.name, unrelated.name])
    other.kill()
    other.wait()
    with storage.atomic_folder(tmp_path / "5"):
        assert not filled.exists()


def test_permissions_follow_the_mode(tmp_path):
    with storage.atomic_file(tmp_path / "run.sh", mode=0o777) as temporary:
        temporary.write_text("#!/bin/sh")
    assert os.access(tmp_path / "run.sh", os.X_OK)
    storage.write_text(tmp_path / "a.txt", "a")
    assert not os.stat(tmp_path / "a.txt").st_mode & 0o111
