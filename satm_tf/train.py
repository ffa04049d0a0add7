"""satm-tf train: images in; defended networks, tables and exports out."""

from __future__ import annotations

import argparse
import sys

from satm_tf import command_line, experiment
from satm_tf.experiment import config, cost


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment that the command line describes; returns the exit code."""
    return command_line.run(_train, arguments, resumes=True)


def _train(arguments: list[str]) -> None:
    parser = config.parser("satm-tf train")
    # Suppressed, so that `--print_config` holds the configuration alone.
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=argparse.SUPPRESS,
        help="Check everything, print the estimated cost of the run, and stop without writing anything.",
    )
    described, asked = config.parse(parser, arguments)
    if asked.get("dry_run"):
        print(cost.describe(described))
    else:
        experiment.run(described)


if __name__ == "__main__":
    sys.exit(main())
