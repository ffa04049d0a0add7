"""What `test_distribution.py` runs in a process of its own: two workers that stand for two machines, twice.

    python -m tests.training.worker FOLDER ADDRESS ADDRESS ADDRESS ADDRESS

The first pair trains to the end in `FOLDER/whole`, and again in `FOLDER/broken` until one of them dies by SIGKILL; the
second pair resumes there. The workers are forks of this process, so that TensorFlow is imported once; none of it has
run before the fork. A worker leaves its arrays in `<place>.npz`, its errors in `<place>.err`; this process leaves the
exit codes of the pairs in `outcome.json`, and whether there was a checkpoint after each.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import keras
import numpy as np

from satm_tf import DomainAdversarial
from satm_tf.training import Checkpoint, get_strategy, is_chief
from tests.training.small_training import NETWORKS, train


class DieAt(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def train_small(strategy, callbacks=()):
    norms = {name: NETWORKS[name] for name in ("plain", "own")}
    return train(
        strategy,
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        norms=norms,
        domain_adaptation=DomainAdversarial(hidden=5),
        callbacks=callbacks,
    )


def arrays(trainer, figures):
    """All variables but the metrics' by number, and the figures of the epochs by name."""
    metrics = {id(variable) for variable in trainer.metrics_variables}
    variables = [variable for variable in trainer.state() if id(variable) not in metrics]
    state = {str(index): np.asarray(variable) for index, variable in enumerate(variables)}
    return {**state, **{key: np.array(values) for key, values in figures.items()}}


def work(index, folders, die_at):
    """The training of one worker in each of these folders, of which the last ends at a step if one is given."""
    strategy = get_strategy("multi_worker")
    assert is_chief(strategy) == (index == 0)
    for folder in folders:
        dying = [DieAt(die_at)] if die_at and folder == folders[-1] else []
        trained = train_small(strategy, [*dying, Checkpoint(folder, every_seconds=0.0)])
        np.savez(folder / f"{index}.npz", **arrays(*trained))


def fork(index, addresses, folders, die_at):
    """Starts a worker as a fork of this process; its process number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with (folders[-1] / f"{index}.err").open("w") as errors:
            os.dup2(errors.fileno(), 2)
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        os.environ["TF_CONFIG"] = json.dumps(cluster)
        work(index, folders, die_at)
        code = 0
    except ConnectionError as error:
        print(f"ConnectionError: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main():
    folder, addresses = Path(sys.argv[1]), sys.argv[2:]
    whole, broken = folder / "whole", folder / "broken"
    for each in (whole, broken):
        each.mkdir()
    codes, saved = [], []
    # One of the first pair dies in the second epoch of four steps.
    for pair, folders, die_at in ((addresses[:2], [whole, broken], (0, 6)), (addresses[2:], [broken], (0, 0))):
        workers = [fork(index, pair, folders, die_at[index]) for index in range(2)]
        codes.append([os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers])
        saved.append((broken / "last.ckpt").exists())
        for index in range(2):
            (broken / f"{index}.err").rename(folder / f"{len(codes)}_{index}.err")
    (folder / "outcome.json").write_text(json.dumps({"codes": codes, "saved": saved}))


if __name__ == "__main__":
    main()
