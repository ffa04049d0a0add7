"""`python -m satm_tf`: the version, and the commands there are."""

from __future__ import annotations

import argparse
from importlib import import_module

import satm_tf

COMMANDS = ("train", "evaluate", "attack", "export", "predict", "prepare", "reproduce")


def main(arguments: list[str] | None = None) -> None:
    """Prints either."""
    first = {name: str(import_module(f"satm_tf.{name}").__doc__).partition("\n")[0] for name in COMMANDS}
    parser = argparse.ArgumentParser(
        prog="python -m satm_tf",
        description="commands, each with --help:\n\n" + "\n".join(f"  {line}" for line in first.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"satm_tf {satm_tf.__version__}")
    parser.parse_args(arguments)
    parser.print_help()


if __name__ == "__main__":
    main()
