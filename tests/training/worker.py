"""What `test_distribution.py` runs in a process of its own for each worker: a training in each folder, one by one.

    TF_CONFIG=... python -m tests.training.worker DIE_AT FOLDER [FOLDER ...]

It leaves what came of each in `<folder>/<place>.npz`, or prints the error that ended it. At step DIE_AT of the last
training, unless it is 0, the process dies by SIGKILL.
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

from satm_tf import DomainAdversarial
from satm_tf.training import Checkpoint, get_strategy, is_chief
from tests.training.small_training import NETWORKS, fit, make_trainer


class DieAt(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def make_small(strategy):
    return make_trainer(
        strategy,
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        norms={name: NETWORKS[name] for name in ("plain", "own")},
        domain_adaptation=DomainAdversarial(hidden=5),
    )


def arrays(trainer, figures):
    """All variables but the metrics' by number, and the figures of the epochs by name."""
    metrics = {id(variable) for variable in trainer.metrics_variables}
    variables = [variable for variable in trainer.state() if id(variable) not in metrics]
    state = {str(index): np.asarray(variable) for index, variable in enumerate(variables)}
    return {**state, **{key: np.array(values) for key, values in figures.items()}}


def main():
    die_at, folders = int(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]]
    strategy = get_strategy("multi_worker")
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    assert is_chief(strategy) == (index == 0)
    trainer = make_small(strategy)
    start = [np.array(variable) for variable in trainer.state()]
    for folder in folders:
        for variable, value in zip(trainer.state(), start, strict=True):  # so that it is traced once
            variable.assign(value.copy())
        dying = [DieAt(die_at)] if die_at and folder == folders[-1] else []
        try:
            figures = fit(trainer, callbacks=[*dying, Checkpoint(folder, every_seconds=0.0)])
        except ConnectionError as error:
            sys.exit(f"ConnectionError: {error}")
        np.savez(folder / f"{index}.npz", **arrays(trainer, figures))


if __name__ == "__main__":
    main()
