"""satm-tf COMMAND, or python -m satm_tf COMMAND: every command of the package."""

from __future__ import annotations

import sys
from importlib import import_module

import satm_tf
from satm_tf.configurable import unknown_name

COMMANDS = ("train", "harden", "evaluate", "attack", "export", "predict", "prepare", "reproduce")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command that the first argument names; returns the exit code.

    Raises:
        SystemExit: With 2 if there is no such command, or as the command's own `main` does.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return int(import_module(f"satm_tf.{name}").main(rest))
    if name == "--version":
        print(f"satm_tf {satm_tf.__version__}")
    elif name in ("-h", "--help"):
        print("usage: satm-tf COMMAND [--OPTION VALUE ...]\n\nCommands, each with --help:\n")
        for command in COMMANDS:
            summary = str(import_module(f"satm_tf.{command}").__doc__).partition("\n")[0].partition(": ")[2]
            print(f"  {command:<11}{summary}")
        print("\noptions:\n  -h, --help\n  --version")
    else:
        print(
            f"usage: satm-tf COMMAND [--OPTION VALUE ...]\nerror: {unknown_name('command', name, COMMANDS)}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
