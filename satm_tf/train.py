"""`python -m satm_tf.train`: from images on disk to defended networks, tables and exports."""

from __future__ import annotations

import sys

from satm_tf import config, experiment
from satm_tf.command_line import exit_code


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment that the command line describes; returns the exit code."""
    described = config.from_arguments(sys.argv[1:] if arguments is None else arguments, prog="python -m satm_tf.train")
    return exit_code(lambda: experiment.run(described))


if __name__ == "__main__":
    sys.exit(main())
