"""python -m satm_tf.reproduce: the paper's tables and figures, ours beside.

usage: python -m satm_tf.reproduce --all | --table N ... | --figure N ...
                                   [--OPTION VALUE ...] [--FIELD VALUE ...]

What tables and figures share is done once. A command that was stopped, or
killed, goes on when it is given again.

what:
  --table N ...     1 to 7
  --figure N ...    1, 3, 4
  --all             all of them
how:
  --scale small     compact networks on synthetic faces, for two cores; or
          paper     the paper's networks on Adience (--data.root), for GPUs
  --idx FOLDER      MNIST or Fashion-MNIST as IDX files, for Table 7
  --folds N ...     of the faces; 0 1 2 3 4
  --seeds N ...     a run for each fold and seed; 0
  --out FOLDER      where to; runs/reproduce_<scale>
  --printed-only    leave out what the paper printed no figure for
  --dry-run         say what it would take, and stop
  --FIELD VALUE     any field of the configuration, as satm_tf.train takes it

other options:
  --help-all       every option;  --debug  the traceback of an error

example: python -m satm_tf.reproduce --table 2 4 --folds 0
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from satm_tf import command_line
from satm_tf.experiment.config import Config, from_arguments
from satm_tf.paper.reproduction import Request, describe_cost, reproduce
from satm_tf.paper.tables import FIGURES, READINGS, TABLES

_SCALES = {
    "paper": "The full-size networks on Adience (--data.root FOLDER), for GPUs.",
    "small": "The same experiments with compact networks on synthetic faces, for two cores. Beside its own figures the "
    "paper's are only for orientation; what can be compared is what the trainings gain. Epsilons of Tables 2 to 6 are "
    "twice the paper's, without which images this small hardly transfer.",
}


def main(arguments: list[str] | None = None) -> int:
    """Reproduces what the command line asks for; returns the exit code."""
    return command_line.run(_reproduce, arguments, page=__doc__, goes_on=True)


def _reproduce(arguments: list[str]) -> None:
    asked, rest = _parser().parse_known_args(arguments)
    request = _request(asked, rest)
    print(f"{describe_cost(request)}\n", flush=True)
    if not asked.dry_run:
        command = f"python -m satm_tf.reproduce {shlex.join(arguments)}"
        reproduce(request, f"`{command}`\n\nScale {asked.scale}: {_SCALES[asked.scale]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m satm_tf.reproduce",
        description="Trains, measures, and sets the paper's tables and figures beside ours. What they share is "
        "done once; a command that was killed goes on where it was. Any other option is one of the faces' "
        "configuration (of the digits', for Table 7 alone), as python -m satm_tf.train takes it, such as --data.root "
        "FOLDER for a copy of Adience.",
        allow_abbrev=False,
    )
    parser.add_argument("--table", type=int, nargs="+", default=[], choices=sorted(TABLES), help="Tables by number.")
    parser.add_argument("--figure", type=int, nargs="+", default=[], choices=sorted(FIGURES), help="Figures by number.")
    parser.add_argument("--all", action="store_true", help="All tables and figures.")
    parser.add_argument("--scale", choices=_SCALES, default="small", help=" ".join(_SCALES.values()))
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4], choices=range(5), help="Of the faces.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="A run for each fold and seed.")
    parser.add_argument("--idx", metavar="FOLDER", help="MNIST or Fashion-MNIST as IDX files, for Table 7.")
    parser.add_argument("--out", metavar="FOLDER", help="Where to; runs/reproduce_<scale> if not given.")
    parser.add_argument("--readings", nargs="+", default=list(READINGS), choices=READINGS, help="Of R+Step-LL.")
    parser.add_argument("--printed-only", action="store_true", help="Leave out what the paper printed no figure for.")
    parser.add_argument("--dry-run", action="store_true", help="Say what it would take, and stop.")
    return parser


def _request(asked: argparse.Namespace, rest: list[str]) -> Request:
    tables = sorted(TABLES) if asked.all else sorted(set(asked.table))
    figures = sorted(FIGURES) if asked.all else sorted(set(asked.figure))
    if not tables and not figures:
        raise ValueError("Say what to reproduce: --table N ..., --figure N ... or --all. Received: none of them")
    configs: dict[str, Config] = {}
    if figures or any(TABLES[number].experiment == "faces" for number in tables):
        configs["faces"] = from_arguments(["--config", asked.scale, *rest], prog="python -m satm_tf.reproduce")
    if any(TABLES[number].experiment == "digits" for number in tables):
        if asked.idx is None:
            raise ValueError(
                "Table 7 needs MNIST or Fashion-MNIST: --idx FOLDER of the four IDX files. Without them, ask for "
                "--table 1 2 3 4 5 6 --figure 1 3 4. Received: no --idx"
            )
        own = [] if "faces" in configs else rest
        configs["digits"] = from_arguments(["--config", f"{asked.scale}_mnist", "--data.root", asked.idx, *own])
    out = Path(asked.out or Path("runs") / f"reproduce_{asked.scale}")
    folds, seeds, readings = (tuple(dict.fromkeys(each)) for each in (asked.folds, asked.seeds, asked.readings))
    return Request(tables, figures, configs, out, folds, seeds, readings, asked.printed_only)


if __name__ == "__main__":
    sys.exit(main())
