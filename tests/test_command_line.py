"""What all commands have in common: a page of help, one line for an error, the exit codes."""

import re
import signal
import sys
from importlib import import_module
from pathlib import Path

import pytest

from satm_tf import __main__ as listing
from satm_tf import __version__, command_line
from satm_tf.experiment.config import PRESETS
from satm_tf.serving import ServingError
from satm_tf.training import Interrupted


def failing(error):
    def work(arguments):
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no such scheme"), 1, "error: no such scheme\n"),
        (FileNotFoundError("no such folder"), 1, "error: no such folder\n"),
        (FloatingPointError("no number"), 1, "error: no number\n"),
        (ConnectionError("a worker has gone"), 1, "error: a worker has gone\n"),
        (ImportError("install the extra"), 1, "error: install the extra\n"),
        (ServingError("Servable not found"), 1, "error: Servable not found\n"),
        (Interrupted(signal.SIGTERM, Path("run")), 143, "SIGTERM received"),
        (Interrupted(signal.SIGINT, Path("run")), 130, "SIGINT received"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_errors_are_lines_and_codes(error, code, said, capsys):
    assert command_line.run(failing(error), []) == code
    printed = capsys.readouterr().err
    assert printed.startswith(said)
    assert "Traceback" not in printed


def test_what_goes_on_says_so(capsys):
    assert command_line.run(failing(KeyboardInterrupt()), [], goes_on=True) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n"


def test_an_error_nobody_foresaw_is_a_line_and_its_traceback_a_file(capsys):
    class ConverterError(Exception):
        """As TensorFlow's converters raise."""

    assert command_line.run(failing(ConverterError("no kernel\nfunc @main(%arg0)")), []) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: ConverterError: no kernel"
    kept = Path(second.split(": ")[1])
    text = kept.read_text()
    kept.unlink()
    assert text.startswith("Traceback")
    assert "func @main" in text


def test_debug_prints_the_traceback_and_is_no_argument_of_the_command(capsys):
    seen = []

    def work(arguments):
        seen.extend(arguments)
        raise ValueError("no such scheme")

    assert command_line.run(work, ["--data.root", "x", "--debug", "--n={a: b}"]) == 1
    assert seen == ["--data.root", "x", "--n={a: b}"]
    assert capsys.readouterr().err.startswith("Traceback")


def test_arguments_are_the_programs_own_if_not_given(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["program", "a", "--b"])
    assert command_line.run(seen.extend) == 0
    assert seen == ["a", "--b"]


def complete_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        import_module(f"satm_tf.{name}").main(["--help-all"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", listing.COMMANDS)
def test_help_is_a_screen_of_options_that_exist(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main = import_module(f"satm_tf.{name}").main
    try:
        code = main(["--help"])
    except SystemExit as stopped:  # the parser's own help
        code = stopped.code
    assert code == 0
    page = capsys.readouterr().out
    # Python 3.13 writes an option and its value once, earlier versions twice.
    assert len(page.splitlines()) <= 32, page
    assert max(map(len, page.splitlines())) <= 80, page
    assert f"python -m satm_tf.{name}" in page
    assert "--debug" in page
    whole = complete_help(name, capsys)
    own = {"--help", "--help-all", "--debug", "--dry-run", "--FIELD", "--OPTION"}
    own |= {"--attack.epsilon", "--schemes.NAME.preset"}  # of what any name, or option, may be given
    named = set(re.findall(r"--[A-Za-z][\w.-]*\w", page)) - own
    missing = {option for option in named if not re.search(rf"{re.escape(option)}\b", whole)}
    assert not missing, "the page names options that there are not"


def test_the_page_of_train_names_every_preset(capsys):
    assert import_module("satm_tf.train").main(["-h"]) == 0
    page = capsys.readouterr().out
    assert all(re.search(rf"\b{preset}\b", page) for preset in PRESETS)


@pytest.mark.parametrize("name", listing.COMMANDS)
def test_arguments_that_are_not_understood_have_their_own_code(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        import_module(f"satm_tf.{name}").main(["--table", "9", "--no-such-option"])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "usage: python -m satm_tf." in printed
    assert "Traceback" not in printed


def test_the_commands_are_listed_with_the_version(capsys):
    listing.main([])
    page = capsys.readouterr().out
    assert all(f"python -m satm_tf.{name}: " in page for name in listing.COMMANDS)
    with pytest.raises(SystemExit) as stopped:
        listing.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"satm_tf {__version__}\n"
