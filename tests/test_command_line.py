"""What all commands have in common: options, help, one line for an error, the exit codes."""

import contextlib
import dataclasses
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from satm_tf import __main__ as listing
from satm_tf import __version__, command_line
from satm_tf.experiment import config
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
        (KeyboardInterrupt(), 130, "Stopped.\n"),
    ],
)
def test_errors_are_lines_and_codes(error, code, said, capsys):
    assert command_line.run(failing(error), []) == code
    printed = capsys.readouterr().err
    assert printed.startswith(said)
    assert "Traceback" not in printed


def test_what_can_be_resumed_says_so(capsys):
    assert command_line.run(failing(KeyboardInterrupt()), [], resumes=True) == 130
    assert capsys.readouterr().err == "Stopped. Re-run the same command to resume.\n"


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


def ended(main, arguments):
    """The exit code, however it is given."""
    try:
        return main(arguments)
    except SystemExit as stopped:
        return stopped.code


def run_command(name, *arguments):
    return ended(listing.main, [name, *arguments])


@pytest.mark.parametrize("name", listing.COMMANDS)
def test_help_is_a_screen_or_two_and_help_all_has_every_field(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(name, "--help") == 0
    page = capsys.readouterr().out
    assert len(page.splitlines()) <= (85 if name == "train" else 120), page
    assert max(map(len, page.splitlines())) <= 100, page
    assert page.startswith(f"usage: satm-tf {name} [--OPTION VALUE ...]")
    assert "--debug" in page
    assert run_command(name, "--help-all") == 0
    assert len(capsys.readouterr().out) >= len(page)


def test_the_help_of_train_leaves_out_fields_inside_a_field(capsys):
    assert run_command("train", "-h") == 0
    page = capsys.readouterr().out
    assert all(re.search(rf"\b{preset}\b", page) for preset in PRESETS)
    assert "--co_train.epochs" not in page
    assert run_command("train", "--help-all") == 0
    whole = capsys.readouterr().out
    assert "--co_train.epochs" in whole
    assert "--dry-run" in page


@pytest.mark.parametrize("name", listing.COMMANDS)
def test_arguments_that_are_not_understood_have_their_own_code(name, capsys):
    assert run_command(name, "--table", "9", "--no-such-option") == 2
    printed = capsys.readouterr().err
    assert "usage: " in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "3"], "Did you mean --co_train.epochs or --fine_tune.epochs?"),
        (["--co_train.epoch", "3"], "Did you mean --co_train.epochs?"),
        (["--co_train.epoch=3"], "Did you mean --co_train.epochs?"),
        (["--see", "3"], "Did you mean --seed?"),
        (["--dry"], "--dry"),
    ],
)
def test_abbreviated_and_unknown_flags_are_refused_with_the_nearest(arguments, message, capsys):
    assert run_command("train", *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: satm-tf train ")
    assert message in printed


def test_reproduce_knows_its_own_options_and_those_of_a_configuration(capsys):
    assert run_command("reproduce", "--tabel", "4") == 2
    assert "Did you mean --table?" in capsys.readouterr().err
    assert run_command("reproduce", "--table", "4", "--epochs", "4") == 2
    assert "--co_train.epochs" in capsys.readouterr().err


def test_the_commands_are_listed_with_the_version(capsys):
    assert listing.main([]) == 0
    page = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", page, re.MULTILINE) for name in listing.COMMANDS)
    assert listing.main(["--version"]) == 0
    assert capsys.readouterr().out == f"satm_tf {__version__}\n"
    assert ended(listing.main, ["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def greet(name: str, *, times: int = 1, options: dict[str, int] | None = None) -> None:
    """Greets somebody.

    Args:
        name: Who it is.
        times: How often.
        options: Of anything.
    """
    if times < 0:
        raise ValueError(f"times must not be negative. Received: {times}")
    print(f"{name} {times} {options}")


def count(*files: str, times: int = 1) -> None:
    """Counts files.

    Args:
        *files: The files.
        times: How often.
    """
    print(len(files) * times)


def test_a_command_is_made_from_a_function(tmp_path, capsys):
    main = command_line.command(greet, prog="satm-tf greet")
    assert main(["Ada", "--times", "2"]) == 0
    assert capsys.readouterr().out == "Ada 2 None\n"
    assert main(["Ada", "--times", "-2"]) == 1
    assert capsys.readouterr().err == "error: times must not be negative. Received: -2\n"
    assert ended(main, ["Ada", "--times", "3", "--print_config"]) == 0
    path = tmp_path / "options.yaml"
    path.write_text(capsys.readouterr().out)
    assert main(["--config", str(path), "Bea"]) == 0
    assert capsys.readouterr().out == "Bea 3 None\n"
    assert ended(main, ["Ada", "--time", "2"]) == 2
    assert ended(main, ["--help"]) == 0
    assert "How often." in capsys.readouterr().out


def test_a_command_takes_one_value_or_several(capsys):
    assert command_line.command(count)(["a", "b", "--times", "2"]) == 0
    assert capsys.readouterr().out == "4\n"
    assert ended(command_line.command(count), []) == 2
    assert capsys.readouterr().err.startswith("usage: satm-tf count ")


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module in the working directory that leaves a file behind when it is imported."""
    (tmp_path / "trap.py").write_text(
        "import pathlib\npathlib.Path('caught').touch()\ndef make(**options):\n    return options\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    assert not (tmp_path / "caught").exists()
    assert "trap" not in sys.modules


def test_no_field_of_a_configuration_imports_or_calls(trap, capsys):
    parser, names = config.parser(), {field.name for field in dataclasses.fields(config.Config)}
    fields = [name[2:] for name in parser._option_string_actions if name.startswith("--")]
    fields = [name for name in fields if name.partition(".")[0] in names]
    fields += [
        "attack.name",
        "networks.x",
        "networks.x.backbone",
        "schemes.x",
        "schemes.x.attack",
        "evaluation_attacks.x",
    ]
    assert len(fields) > 50

    def parse(arguments):
        return config.parse(parser, arguments)

    described = trap / "described.yaml"
    for field in fields:
        inner, outer = {"class_path": "trap.make", "init_args": {"cmd": "hi"}}, {}
        for part in reversed(field.split(".")):
            outer = {part: outer or inner}
        described.write_text(yaml.safe_dump(outer))
        for arguments in (
            ["--config", str(described)],
            [f"--{field}", str(inner)],
            [f"--{field}.class_path", "trap.make"],
            [f"--{field}.init_args.cmd=hi"],
        ):
            assert ended(parse, arguments) == 2, arguments
            assert "cannot import or call anything" in capsys.readouterr().err
        if field in ("data.augmentation", "schemes.x.attack"):
            assert run_command("train", "--config", str(described), "--dry-run") == 2
        with contextlib.suppress(ValueError):  # no value of this field, found after it was parsed
            ended(parse, [f"--{field}", "trap.make"])


@pytest.mark.parametrize("name", [name for name in listing.COMMANDS if name not in ("train", "reproduce")])
def test_no_option_of_a_command_imports_or_calls(name, trap, capsys):
    assert run_command(name, "--help-all") == 0
    options = set(re.findall(r"^  (--[\w.-]+)", capsys.readouterr().out, re.MULTILINE)) - {
        "--config",
        "--print_config",
    }
    inner = "{class_path: trap.make, init_args: {cmd: hi}}"
    described = trap / "described.yaml"
    described.write_text("".join(f"{option[2:]}: {inner}\n" for option in options))
    assert run_command(name, "--config", str(described), "--print_config") == 2
    for option in options - {"--help-all"}:
        assert run_command(name, option, inner, "--print_config") == 2
        assert run_command(name, f"{option}.class_path", "trap.make", "--print_config") == 2
        run_command(name, option, "trap.make", "--print_config")


def test_no_option_of_reproduce_imports_or_calls(trap, capsys):
    assert run_command("reproduce", "--help") == 0
    options = set(re.findall(r"^  (--[\w.-]+)", capsys.readouterr().out, re.MULTILINE))
    assert {"--table", "--out", "--scale"} <= options
    for option in options - {"--help", "--help-all"}:
        assert run_command("reproduce", option, "{class_path: trap.make, init_args: {cmd: hi}}", "--dry-run") != 0


def bomb(width, depth):
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, depth)]
    return "\n".join(lines)


def test_aliases_are_taken_and_those_that_multiply_are_refused_at_once(tmp_path, capsys):
    assert command_line.load_yaml("{a: &one {x: 1}, b: *one}") == {"a": {"x": 1}, "b": {"x": 1}}
    path = tmp_path / "bomb.yaml"
    inside = "a: &a [" + "x," * 100 + "]\nb: &b [" + "*a," * 100 + "]\nc: [" + "*b," * 100 + "]"
    started = time.process_time()
    with pytest.raises(ValueError, match="more than 20,000 values"):
        command_line.load_yaml(bomb(9, 9))
    assert time.process_time() - started < 1
    for text in (bomb(9, 9), "a: &a [*a]", "[" * 5000 + "]" * 5000, yaml.safe_dump({"attack": inside})):
        path.write_text(text)
        assert run_command("train", "--config", str(path)) == 2
        assert f"cannot be read: {path}" in capsys.readouterr().err
    assert run_command("train", "--attack", f"{{{bomb(9, 9)}}}".replace("\n", ", ")) == 2
    assert "more than 20,000 values" in capsys.readouterr().err
