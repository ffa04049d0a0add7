"""What commands print on standard error before they say anything: nothing but errors."""

import os
import platform
import subprocess
import sys

import pytest

from satm_tf import start_up

INFO = b"I0000 00:00:1795784852.155237   11822 port.cc:153] oneDNN custom operations are on."
OLD_INFO = b"2025-09-17 14:44:05.157831: I external/local_xla/xla/tsl/cuda/cudart_stub.cc:32] no cuda drivers"
ERROR = b"E0000 00:00:1795784855.735831   11822 some.cc:52] no memory"
NO_GPU = b"E0000 00:00:1795784855.735831   11822 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)"
FATAL = b"F0000 00:00:1795784855.735831   11822 cpu_feature_guard.cc:84] compiled to use AVX instructions"
HEADER = b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR"


@pytest.mark.parametrize(
    ("line", "levels"),
    [
        (HEADER, {0}),
        (INFO, {0}),
        (OLD_INFO, {0}),
        (b"W" + INFO[1:], {0, 1}),
        (ERROR, {0, 1, 2}),
        (FATAL, {0, 1, 2, 3}),
        (b"Traceback (most recent call last):", {0, 1, 2, 3}),
        (b"In a word: an error", {0, 1, 2, 3}),
    ],
)
def test_lines_are_shown_from_their_severity_on(line, levels):
    assert {level for level in range(4) if start_up.shown(line, level, gpu=False)} == levels


def test_a_gpu_that_does_not_start_is_an_error_where_there_is_one():
    assert start_up.shown(NO_GPU, 2, gpu=True)
    assert not start_up.shown(NO_GPU, 2, gpu=False)
    assert start_up.shown(NO_GPU, 0, gpu=False)


@pytest.mark.parametrize(
    ("argv", "original", "found"),
    [
        (["/usr/bin/satm-tf", "train"], ["python", "/usr/bin/satm-tf", "train"], True),
        (["-m", "--help"], ["python", "-W", "error", "-m", "satm_tf.train", "--help"], True),
        (["-m"], ["python", "-msatm_tf"], True),
        (["-m"], ["python", "-m", "pytest"], False),
        (["mine.py", "satm_tf"], ["python", "mine.py", "satm_tf"], False),
        ([], ["python"], False),
    ],
)
def test_commands_are_known_from_other_programs(argv, original, found, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert start_up.is_command() is found


def said(code, **environment):
    """The exit code and standard error of a process, whose environment has no level but a given one."""
    plain = {name: value for name, value in os.environ.items() if name != start_up.LEVEL}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**plain, **environment}, check=False
    )
    return done.returncode, done.stderr


# Without the package, and with it TensorFlow.
LOADED = f"""
import os, sys, importlib.util
spec = importlib.util.spec_from_file_location("start_up", {start_up.__file__!r})
start_up = importlib.util.module_from_spec(spec)
spec.loader.exec_module(start_up)
"""
ABORTED = f"""{LOADED}
with start_up.quieted():
    os.write(2, {INFO!r} + b"\\n" + {ERROR!r} + b"\\n")
    print("python", file=sys.stderr)
    ENDS
print("afterwards", file=sys.stderr)
"""


def test_what_is_no_news_is_dropped_and_all_else_comes_in_its_order():
    expected = [ERROR.decode(), "python", "afterwards"]
    code, text = said(ABORTED.replace("ENDS", "pass"))
    assert (code, text.splitlines()) == (0, expected)
    code, text = said(ABORTED.replace("ENDS", "pass"), **{start_up.LEVEL: "0"})
    assert text.splitlines() == [INFO.decode(), *expected], "what the user has set wins"
    code, text = said(ABORTED.replace("ENDS", "pass"), **{start_up.LEVEL: "3"})
    assert text.splitlines() == expected[1:]


def test_the_last_words_of_a_process_that_is_aborted_are_shown():
    code, text = said(ABORTED.replace("ENDS", f"os.write(2, {FATAL!r}); os.abort()"))
    assert code < 0
    assert text.splitlines()[-1] == FATAL.decode()
    code, text = said(ABORTED.replace("ENDS", "raise ImportError('no such backend')"))
    assert code == 1
    assert "no such backend" in text


def test_commands_begin_without_a_word(tmp_path):
    """By every way to call one, at the same time. What a whole run prints is in experiment/test_running.py."""
    plain = {name: value for name, value in os.environ.items() if name != start_up.LEVEL}
    script = tmp_path / "satm-tf"
    script.write_text("import sys\nfrom satm_tf.__main__ import main\nsys.exit(main())\n")
    ways = (["-m", "satm_tf.harden", "--help"], ["-m", "satm_tf", "--version"], [str(script), "--version"])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": plain}
    for process in [subprocess.Popen([sys.executable, *way], **pipes) for way in ways]:
        printed, errors = process.communicate()
        assert (process.returncode, errors) == (0, b""), process.args
        assert printed


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_kept_for_what_comes_next():
    """Pages that are fetched anew while arrays of 8 MB come and go, before and after."""
    script = """
import resource
import numpy as np

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        held = [np.ones(2**20) for _ in range(8)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
first = faults()
start_up.keep_freed_memory()
faults()
print(first, faults())
"""
    defaults = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", LOADED + script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=defaults)
    before, after = map(int, done.stdout.split())
    assert after < before / 4, done.stdout
