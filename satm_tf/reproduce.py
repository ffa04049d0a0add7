"""satm-tf reproduce: the paper's tables and figures, next to ours."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from satm_tf import command_line
from satm_tf.experiment import config
from satm_tf.experiment.config import Config
from satm_tf.paper.reproduction import Request, describe_cost, reproduce
from satm_tf.paper.tables import FIGURES, READINGS, TABLES

_PROG = "satm-tf reproduce"

_SCALES = {
    "paper": "The full-size networks on Adience (--data.root FOLDER), for GPUs.",
    "small": "The same experiments with compact networks on synthetic faces, for two cores. The paper's figures are "
    "only for orientation here; compare what a training gains. The epsilons of Tables 2 to 6 are twice the paper's, "
    "because examples this small hardly transfer otherwise.",
}


def main(arguments: list[str] | None = None) -> int:
    """Reproduces the tables and figures named on the command line; returns the exit code."""
    return command_line.run(_reproduce, arguments, resumes=True)


def _reproduce(arguments: list[str]) -> None:
    own = argparse.ArgumentParser(prog=_PROG, add_help=False, allow_abbrev=False)
    _add_options(own)
    asked, rest = own.parse_known_args(arguments)
    # The complete parser, whose errors and help cover both kinds of options.
    faces = _config(asked.scale, arguments)
    request = _request(asked, faces, rest)
    print(f"{describe_cost(request)}\n", flush=True)
    if not asked.dry_run:
        command = f"{_PROG} {shlex.join(arguments)}"
        reproduce(request, f"`{command}`\n\nScale {asked.scale}: {_SCALES[asked.scale]}")


def _add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to reproduce")
    group.add_argument("--table", type=int, nargs="+", default=[], choices=sorted(TABLES), help="Tables by number.")
    group.add_argument("--figure", type=int, nargs="+", default=[], choices=sorted(FIGURES), help="Figures by number.")
    group.add_argument("--all", action="store_true", help="All tables and figures.")
    group.add_argument("--scale", choices=sorted(_SCALES), default="small", help=" ".join(_SCALES.values()))
    group.add_argument(
        "--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4], choices=[0, 1, 2, 3, 4], help="Folds of the faces."
    )
    group.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="Seeds; there is a run for each fold and seed."
    )
    group.add_argument("--idx", metavar="FOLDER", help="MNIST or Fashion-MNIST as IDX files, for Table 7.")
    group.add_argument("--out", metavar="FOLDER", help="Output folder; runs/reproduce_<scale> if not given.")
    group.add_argument(
        "--readings", nargs="+", default=list(READINGS), choices=sorted(READINGS), help="Readings of R+Step-LL."
    )
    group.add_argument(
        "--printed-only", action="store_true", help="Leave out everything for which the paper prints no figure."
    )
    group.add_argument("--dry-run", action="store_true", help="Print the estimated cost of the run, and stop.")


def _config(preset: str, rest: list[str]) -> Config:
    """The configuration that a command line describes; it may include the options of `_add_options`."""
    parser = config.parser(_PROG)
    parser.description = (
        "Trains, measures, and shows the paper's tables and figures next to ours. Shared work is done once. "
        "Other options are fields of the faces' configuration, as in train; for Table 7 alone, of the digits'."
    )
    _add_options(parser)
    return config.parse(parser, ["--config", preset, *rest])[0]


def _request(asked: argparse.Namespace, faces: Config, rest: list[str]) -> Request:
    tables = sorted(TABLES) if asked.all else sorted(set(asked.table))
    figures = sorted(FIGURES) if asked.all else sorted(set(asked.figure))
    if not tables and not figures:
        raise ValueError("Choose what to reproduce: --table N ..., --figure N ... or --all. Received: none of them")
    configs: dict[str, Config] = {}
    if figures or any(TABLES[number].experiment == "faces" for number in tables):
        configs["faces"] = faces
    if any(TABLES[number].experiment == "digits" for number in tables):
        if asked.idx is None:
            raise ValueError(
                "Table 7 needs MNIST or Fashion-MNIST: --idx FOLDER of the four IDX files. Without them, use --table "
                "1 2 3 4 5 6 --figure 1 3 4. Received: no --idx"
            )
        own = [] if "faces" in configs else rest
        configs["digits"] = _config(f"{asked.scale}_mnist", ["--data.root", asked.idx, *own])
    out = Path(asked.out or Path("runs") / f"reproduce_{asked.scale}")
    folds, seeds, readings = (tuple(dict.fromkeys(each)) for each in (asked.folds, asked.seeds, asked.readings))
    return Request(tables, figures, configs, out, folds, seeds, readings, asked.printed_only)


if __name__ == "__main__":
    sys.exit(main())
