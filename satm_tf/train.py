"""`python -m satm_tf.train`: from images on disk to defended networks, tables and exports."""

from __future__ import annotations

import sys

from satm_tf import config, experiment
from satm_tf.training import Interrupted


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment that the command line describes; returns the exit code."""
    described = config.from_arguments(sys.argv[1:] if arguments is None else arguments, prog="python -m satm_tf.train")
    try:
        experiment.run(described)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return 128 + interruption.signal_number
    except KeyboardInterrupt:  # where nothing trained, as in an evaluation
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
