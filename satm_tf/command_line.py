"""How commands read their options, print their help and end."""

from __future__ import annotations

import argparse
import difflib
import inspect
import logging
import re
import sys
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
import jsonargparse
import tensorflow as tf
import yaml

from satm_tf.configurable import unknown_name
from satm_tf.serving import ServingError, VerificationError
from satm_tf.start_up import keep_freed_memory
from satm_tf.training import Interrupted

# Errors whose message is enough: invalid input, or something missing, full or unreachable.
_EXPLAINED = (ValueError, OSError, ImportError, FloatingPointError, ServingError, VerificationError)

# The keys with which jsonargparse would import a module and call something in it.
_IMPORTING = ("class_path", "init_args", "dict_kwargs")
_MOST_VALUES = 20_000
_MODE = "satm_tf"
# The types of fields, which jsonargparse looks up by name.
_FIELDS = [
    "satm_tf.experiment.config",
    "satm_tf.experiment.sections",
    "satm_tf.experiment.surrogates",
    "satm_tf.data.Augmentation",
    "satm_tf.data.augmentation.Augmentation",
]

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}

_EPILOG = "--debug prints the traceback of an error."


def load_yaml(text: str) -> Any:
    """The content of a YAML text, if it is safe to load.

    Raises:
        ValueError: If it would import something, or its aliases multiply into more than 20,000 values.
        yaml.YAMLError: If it is not YAML.

    Example:
        >>> load_yaml("{epochs: 3}")
        {'epochs': 3}
    """
    _refuse(text)
    return jsonargparse.get_loader("yaml")(text)


def _refuse(text: str) -> None:
    """Raises a ValueError for a text that imports something or whose aliases multiply, before loading it."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ValueError("This YAML is nested too deeply to be a configuration.") from None
    if node is None:
        return
    sizes: dict[int, int] = {}
    for each in _nodes(node, sizes, set()):
        if isinstance(each, yaml.ScalarNode):
            word = next((word for word in _IMPORTING if word in each.value), None)
            if word is not None:
                raise ValueError(
                    "A configuration cannot import or call anything; describe the object by its fields. Received: "
                    f"{word!r}"
                )
            if each is not node and "&" in each.value and "*" in each.value:  # YAML in a string of YAML
                try:
                    _refuse(each.value)
                except yaml.YAMLError:
                    continue


def _nodes(node: yaml.Node, sizes: dict[int, int], open_: set[int]) -> Iterator[yaml.Node]:
    """Every node once, innermost first; raises if there are too many values after expanding aliases."""
    if id(node) in open_:
        raise ValueError("A YAML alias must not refer to a value that contains it.")
    if id(node) in sizes:
        return
    open_.add(id(node))
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    for part in parts:
        yield from _nodes(part, sizes, open_)
    sizes[id(node)] = 1 + sum(sizes[id(part)] for part in parts)
    if sizes[id(node)] > _MOST_VALUES:
        raise ValueError(f"This YAML has more than {_MOST_VALUES:,} values after its aliases are expanded.")
    open_.discard(id(node))
    yield node


jsonargparse.set_loader(_MODE, load_yaml, (yaml.YAMLError, ValueError))


class Parser(jsonargparse.ArgumentParser):
    """The options of a command.

    Flags are never abbreviated, an unknown flag names the nearest, an error exits with 2 after a line of usage, and
    nothing named in a value or a file is imported. `--help` leaves out nested fields; `--help-all` shows them.

    Args:
        *args: As argparse's parser takes them.
        **kwargs: Likewise.

    Example:
        >>> parser = Parser(prog="satm-tf train")
        >>> parser.add_class_arguments(Config)
        >>> parser.parse_args(["--co_train.epochs", "3"])
    """

    _command: typing.ClassVar[str] = ""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs = {
            "usage": "%(prog)s [--OPTION VALUE ...]",
            "epilog": _EPILOG,
            "parser_mode": _MODE,
            "allow_abbrev": False,
            **kwargs,
        }
        super().__init__(*args, **kwargs)
        self._whole = False
        self.add_argument("--help-all", action=_WholeHelp)

    def add_config(self, presets: Mapping[str, Path] | None = None) -> None:
        """Adds `--config` and `--print_config`.

        Args:
            presets: Files that can be named without their path.
        """
        action = type("Config", (_ConfigFile,), {"presets": presets or {}})
        named = f"one of {', '.join(sorted(presets))}; or " if presets else ""
        self.add_argument("--config", action=action, metavar="FILE", help=f"Options from {named}a YAML file.")

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        """The options; see `jsonargparse.ArgumentParser.parse_args`."""
        Parser._command = Parser._command or self.prog
        jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=_FIELDS)
        args = sys.argv[1:] if args is None else list(args)
        try:
            for argument in args:
                flag, _, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
                if set(flag.split(".")) & set(_IMPORTING):
                    self.error(f"A command cannot import or call anything that it is given. Received: {flag}")
                try:
                    _refuse(value)
                except yaml.YAMLError:
                    continue  # It may be something other than YAML.
                except ValueError as error:
                    self.error(str(error))
            return super().parse_args(args, *others, **kwargs)
        finally:
            if Parser._command == self.prog:
                Parser._command = ""

    def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
        """Prints a line of usage and the message, and exits with 2."""
        denied = re.search(r"Importing (\S+) is not allowed", message)
        if denied:
            message = f"A command cannot import or call anything that it is given. Received: {denied[1]}"
        if "nrecognized arguments" in message:
            for flag in re.findall(r"--[\w.-]+", message):
                near = self.nearest(flag)
                message += f". Did you mean {' or '.join(near)}?" if near else ""
                break
        message = _one_sentence(message)
        # jsonargparse creates its own parsers for nested fields, which do not know the program.
        self.prog = Parser._command or self.prog
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}\n")

    def nearest(self, flag: str) -> list[str]:
        """The options that a mistyped flag may refer to: with the same last part, or else similarly spelled."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        last = flag.lstrip("-").split(".")[-1]
        same = [name for name in known if name.lstrip("-").split(".")[-1] == last]
        if same:
            return sorted(same)[:3]
        alike = difflib.get_close_matches(flag, known, n=1, cutoff=0.7)
        ends = {name.lstrip("-").split(".")[-1]: name for name in reversed(known)}
        return alike or [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.7)]

    def format_help(self, *formatter: Any) -> str:
        """The help, with nested fields if all of it was requested."""
        hidden = [] if self._whole else [action for action in self._actions if "." in action.dest]
        texts = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help(*formatter)
        finally:
            for action, text in zip(hidden, texts, strict=True):
                action.help = text


def _one_sentence(message: str) -> str:
    """Rewrites jsonargparse's message about a wrong type, which has several lines; others are unchanged."""
    field = re.match(r'\s*Parser key "([^"]+)":', message)
    kinds = re.search(r"Subtypes: \[(.*)\]$|Expected an? (.*)\. Got value", message, re.MULTILINE)
    # With several types, each reports what it got; the given value comes last.
    value = re.search(r".*(?:Got|Given) value: (.*)\Z", message, re.DOTALL)
    if not (field and kinds and value):
        return message
    words = []
    for choices, name in re.findall(r"Literal\[(.*?)\]|(\w+)(?='>|\[)(?:\[[^]]*\])?", kinds[1] or kinds[2]):
        words.append(f"one of {choices}" if choices else _WORDS.get(name, name))
    return f"{field[1]} must be {' or '.join(words)}. Received: {value[1]}"


class _WholeHelp(argparse.Action):
    """`--help-all`."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any):
        text = "Also show nested fields, and exit."
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=text)

    def __call__(self, parser: Any, *_: Any) -> None:
        parser._whole = True
        parser.print_help()
        parser.exit()


class _ConfigFile(jsonargparse.ActionConfigFile):
    """`--config`, which takes a file or a preset."""

    presets: typing.ClassVar[Mapping[str, Path]] = {}

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        path = self.presets.get(str(values), Path(values))
        if not path.is_file():
            unknown = f"{unknown_name('preset', values, self.presets)}. " if self.presets else ""
            raise argparse.ArgumentError(None, f"{unknown}There is no such file. Received: --config {values}")
        try:
            _refuse(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as error:
            raise argparse.ArgumentError(None, f"This configuration cannot be read: {path}. {error}") from error
        super().__call__(parser, cfg, str(path), option_string)


def command(function: Callable[..., object], *, prog: str | None = None, resumes: bool = False) -> Callable[..., int]:
    """Makes the `main` of a command from the typed function that does its work.

    Keyword-only parameters become options, others positional arguments, and `*files: str` one or more of them. The help
    is the docstring. Every command has `--config FILE` and `--print_config` too.

    Args:
        function: The function.
        prog: Name of the program in messages; `satm-tf <name of the function>` if not given.
        resumes: Whether the same command resumes after it was stopped.

    Returns:
        A function of the arguments (`sys.argv` if none are given) that returns the exit code.

    Example:
        >>> def greet(name: str, *, times: int = 1) -> None:
        ...     "Greets somebody."
        >>> main = command(greet)
        >>> main(["Ada", "--times", "2"])
        0
    """

    def work(arguments: list[str]) -> None:
        parser = Parser(prog=prog or f"satm-tf {function.__name__}")
        several = _add(parser, function)
        given = parser.instantiate(parser.parse_args(arguments)).as_dict()
        given.pop("config", None)
        function(*(given.pop(several) if several else ()), **given)

    def main(arguments: list[str] | None = None) -> int:
        """Runs the command line; returns the exit code."""
        return run(work, arguments, resumes=resumes)

    return main


def _add(parser: Parser, function: Callable[..., object]) -> str | None:
    """Adds the parameters of a function; returns the name of the one that takes several values, if there is one."""
    several = None
    parsed = docstring_parser.parse(inspect.getdoc(function) or "", docstring_parser.DocstringStyle.GOOGLE)
    parser.description = parsed.description or function.__name__
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            several = parameter.name
            text = next((each.description for each in parsed.params if each.arg_name.strip("*") == several), None)
            kind = typing.get_type_hints(function)[several]
            parser.add_argument(several, nargs="+", type=kind, metavar=several.upper(), help=text)
    parser.add_config()
    positional = any(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    parser.add_function_arguments(function, as_group=False, as_positional=positional, fail_untyped=True)
    for parameter in parameters:
        if parameter.default is False:  # The flag without a value means true.
            action = parser._option_string_actions[f"--{parameter.name}"]
            action.nargs, action.const = "?", True
    return several


def run(
    work: Callable[[list[str]], object],
    arguments: Sequence[str] | None = None,
    *,
    resumes: bool = False,
) -> int:
    """Runs a command, and handles `--debug`, errors and the exit code.

    Args:
        work: A function of the other arguments.
        arguments: As in `sys.argv[1:]`, which is the default.
        resumes: Whether the same command resumes after it was stopped.

    Returns:
        0 on success; 1 after an error, which is printed on one line, with a traceback only with `--debug`; 130 after
        Ctrl-C; 143 after SIGTERM during a training, which is saved.

    Raises:
        SystemExit: With 2 if `work` does not understand the arguments, with 0 after `--help`.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in rest
    rest = [argument for argument in rest if argument != "--debug"]
    keep_freed_memory()
    # Each stage has its own graphs, so TensorFlow's retracing warnings would clutter the output.
    tf.get_logger().setLevel(logging.ERROR)
    try:
        work(rest)
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return 128 + interruption.signal_number
    except KeyboardInterrupt:  # if nothing was training, as in an evaluation
        print(f"Stopped.{' Re-run the same command to resume.' if resumes else ''}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif isinstance(error, _EXPLAINED):
            print(f"error: {error}", file=sys.stderr)
        else:
            print(_unexplained(error), file=sys.stderr)
        return 1
    return 0


def _unexplained(error: Exception) -> str:
    """One line for an unexpected error, with the file of its traceback, which may be hard to reproduce."""
    first = str(error).strip().partition("\n")[0]
    with tempfile.NamedTemporaryFile("w", prefix="satm_tf-", suffix=".txt", delete=False, encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return f"error: {type(error).__name__}: {first}\nThe traceback, for a bug report: {file.name}"
