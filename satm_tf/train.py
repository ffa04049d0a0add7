"""python -m satm_tf.train: images in; defended networks, tables, exports out.

usage: python -m satm_tf.train [--config PRESET_OR_FILE] [--FIELD VALUE ...]

A command that was stopped, or killed, goes on when it is given again.

presets, for --config:
  quickstart           four small networks on synthetic faces (the default)
  fashion_mnist        Fashion-MNIST or MNIST, from the IDX files in --data.root
  paper, paper_mnist   the paper's networks at full size, for GPUs
  small, small_mnist   the paper's experiments with compact networks

fields that people set; any other can be, at any depth:
  --run_dir FOLDER                     where the run is kept; runs/<name>
  --data.format FORMAT                 adience, folder, table, idx
  --data.root FOLDER                   where the images are
  --fine_tune.epochs N                 and --co_train.epochs N
  --attack.epsilon X                   16/256 is 0.0625
  --schemes.NAME.preset PRESET         one more way of training, such as trades
  --precision auto, --strategy mirrored

options:
  --dry-run        check everything, say what it takes, write nothing
  --print_config   the whole configuration as YAML, for --config FILE
  --help-all       every field;  --debug  the traceback of an error

example: python -m satm_tf.train --config fashion_mnist --data.root fashion
"""

from __future__ import annotations

import argparse
import sys

from satm_tf import command_line, experiment
from satm_tf.experiment import config, cost


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment that the command line describes; returns the exit code."""
    return command_line.run(_train, arguments, page=__doc__, goes_on=True)


def _train(arguments: list[str]) -> None:
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--dry-run", action="store_true")
    asked, rest = own.parse_known_args(arguments)
    described = config.from_arguments(rest, prog="python -m satm_tf.train")
    if asked.dry_run:
        print(cost.describe(described))
    else:
        experiment.run(described)


if __name__ == "__main__":
    sys.exit(main())
