"""Training that was stopped, in any way, ends as training that was not: every array of it, to the bit."""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from satm_tf import CoTraining
from satm_tf.training import Checkpoint, Interrupted
from satm_tf.training.snapshot import read
from tests.training import resumable
from tests.training.resumable import STEPS, At, train

PLATEAUS = ("loss", "val_loss")
SCRIPT = Path(resumable.__file__)


class StoppedError(Exception):
    pass


def stop():
    raise StoppedError


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a training that was stopped in its second epoch, to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(StoppedError):
        train(folder, callbacks=[At(STEPS + 2, stop)])
    return folder


@pytest.fixture
def bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


def assert_equal(found, expected, note=""):
    assert list(found) == list(expected)
    differing = [key for key in expected if not np.array_equal(found[key], expected[key])]
    assert differing == [], note


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_bit(tmp_path):
    """One network computes in float32, the other in float16, which has a loss scale to keep."""
    step = random.randint(1, 3 * STEPS - 1)
    folder, reference = tmp_path / "killed", tmp_path / "reference"

    def run(*arguments):
        command = [sys.executable, str(SCRIPT), str(folder), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)

    killed = run(reference, step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = run()
    assert finished.returncode == 0, finished.stderr
    assert_equal(np.load(folder / "result.npz"), np.load(reference / "result.npz"), f"killed at step {step}")


# The last step of an epoch, where validation is still to come; the first; one between; after two interruptions.
@pytest.mark.parametrize("steps", [[STEPS], [STEPS + 1], [2, STEPS + 3]])
def test_an_exception_leaves_a_training_that_goes_on(steps, uninterrupted, tmp_path):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    for step in steps:
        with pytest.raises(StoppedError):
            train(tmp_path, callbacks=[At(step, stop)])
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert_equal(train(tmp_path), uninterrupted)


def test_networks_as_they_were_are_those_of_the_first_start(make_network, images, labels, tmp_path):
    """Resumed in networks that have other weights: `before` comes from the checkpoint, and so do partners."""

    def make(seed):
        keras.utils.set_random_seed(seed)
        networks = {"a": make_network("a"), "b": make_network("b", width=4)}
        trainer = CoTraining(networks, learns_from=("before", "past", "sparring"), mixing="images", snapshots=2)
        trainer.compile("sgd", run_eagerly=True)
        return trainer

    def step(data):
        for variable in first.variables:
            if not variable.name.startswith("before"):
                variable.assign(variable + keras.ops.ones_like(variable))
        return {"loss": 0.0}

    first = make(0)
    start = [np.array(weight) for weight in first.networks["a"].weights]
    first.train_step = step
    first.fit(images, labels, epochs=1, verbose=0, callbacks=[Checkpoint(tmp_path)])
    resumed = make(1)
    Checkpoint(tmp_path).restore(resumed, [])
    for ours, expected in zip(resumed.state(), first.state(), strict=True):
        np.testing.assert_array_equal(ours, expected)
    kept = [variable for variable in resumed.variables if variable.name.startswith("before_a_")]
    for variable, expected in zip(kept, start, strict=True):
        np.testing.assert_array_equal(variable[0], expected)
    assert any((np.array(now) != then).any() for now, then in zip(resumed.networks["a"].weights, start, strict=True))


def test_several_steps_at_a_time_go_on_too(bfloat16, tmp_path):
    expected = train(tmp_path / "uninterrupted", steps_per_execution=2)
    with pytest.raises(StoppedError):
        train(tmp_path / "stopped", callbacks=[At(STEPS + 4, stop)], steps_per_execution=2)
    assert_equal(train(tmp_path / "stopped", steps_per_execution=2), expected)


def test_epochs_that_are_not_the_datas_are_refused(make_network, images, labels, tmp_path):
    trainer = CoTraining({"a": make_network("a")}, "undefended")
    trainer.compile("sgd")
    with pytest.raises(ValueError, match=r"leave out steps_per_epoch.*Received: steps_per_epoch=2"):
        trainer.fit(images, labels, steps_per_epoch=2, callbacks=[Checkpoint(tmp_path)])


def test_what_has_finished_is_not_done_again(uninterrupted, tmp_path):
    first = train(tmp_path)
    assert_equal(first, uninterrupted)
    assert_equal(train(tmp_path, callbacks=[At(1, stop), At(3 * STEPS, stop)]), uninterrupted)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "half-written"])
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_is_taken(damage, uninterrupted, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    last = tmp_path / "last.ckpt"
    content = last.read_bytes()
    if damage == "cut":
        last.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        last.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif damage == "empty":
        last.write_bytes(b"")
    elif damage == "gone":  # killed between the two renames
        last.unlink()
    else:
        (tmp_path / ".last.ckpt-abc.ckpt").write_bytes(content[:1000])
    if damage in ("cut", "flip", "empty"):
        with pytest.warns(UserWarning, match=r"last\.ckpt is damaged.*The one before it is used"):
            result = train(tmp_path)
    else:
        result = train(tmp_path)
    assert_equal(result, uninterrupted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_leaves(number, uninterrupted, tmp_path):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=f"{number.name} received.*saved in") as interruption:
        train(tmp_path, callbacks=[At(STEPS + 2, lambda: signal.raise_signal(number))], every_seconds=1e9)
    assert interruption.value.signal_number == number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers

    with pytest.raises(StoppedError):  # The step that was saved is the one that is gone on from, not the epoch's start.
        train(tmp_path, callbacks=[At(STEPS + 2, stop)])
    assert_equal(train(tmp_path), uninterrupted)


def test_a_signal_during_validation_saves_the_whole_epoch_that_came_before(uninterrupted, tmp_path):
    during = keras.callbacks.LambdaCallback(on_test_batch_begin=lambda batch, logs: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="saved in"):
        train(tmp_path, callbacks=[during], every_seconds=1e9)
    # None of the steps of the first epoch is taken again.
    assert_equal(train(tmp_path, callbacks=[At(1, stop)]), uninterrupted)


def test_if_no_checkpoint_is_whole_training_begins_anew_and_says_so(uninterrupted, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged.*training restarts"):
        assert_equal(train(tmp_path), uninterrupted)


def test_early_stopping_goes_on_and_the_best_weights_come_back(tmp_path):
    def run(folder, *callbacks, learning_rate=3.0):
        early = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
        return train(folder, callbacks=[early, *callbacks], epochs=12, learning_rate=learning_rate)

    expected = run(tmp_path / "uninterrupted")
    epochs = len(expected["loss"])
    best = int(np.argmin(expected["val_loss"]))
    assert epochs == best + 1 + 3 < 12, "it must have stopped, and early"
    for step in ((best + 1) * STEPS + 2, (best + 2) * STEPS + 1):
        with pytest.raises(StoppedError):
            run(tmp_path / "stopped", At(step, stop))
    assert_equal(run(tmp_path / "stopped"), expected)
    assert_equal(run(tmp_path / "stopped"), expected, "and once more when all is done")


def test_a_learning_rate_that_falls_on_a_plateau_goes_on(tmp_path):
    sgd = functools.partial(keras.optimizers.SGD, 0.1)

    def run(folder, *callbacks):
        # No loss falls by 10, so that each lowers the rate again and again.
        plateaus = [keras.callbacks.ReduceLROnPlateau(loss, 0.1, 2, min_delta=10, cooldown=1) for loss in PLATEAUS]
        return train(folder, callbacks=[*plateaus, *callbacks], epochs=6, optimizer=sgd)

    expected = run(tmp_path / "uninterrupted")
    assert len(set(expected["learning_rate"])) > 2, "it must have fallen more than once"
    for step in (2 * STEPS + 2, 4 * STEPS + 1):
        with pytest.raises(StoppedError):
            run(tmp_path / "stopped", At(step, stop))
    assert_equal(run(tmp_path / "stopped"), expected)


def test_a_checkpoint_of_other_metrics_or_callbacks_is_refused(tmp_path):
    early = keras.callbacks.EarlyStopping(patience=3)
    first = {"metrics": keras.metrics.SparseTopKCategoricalAccuracy(2, name="top"), "callbacks": [early]}
    others = {
        "metrics": {"metrics": keras.metrics.SparseTopKCategoricalAccuracy(2, name="other")},
        "callbacks": {"callbacks": []},
    }
    train(tmp_path, epochs=1, **first)
    for other, changed in others.items():
        with pytest.raises(ValueError, match=f"is of other {other}"):
            train(tmp_path, epochs=1, **{**first, **changed})


def test_the_best_is_kept_beside_the_last(tmp_path):
    losses = train(tmp_path, epochs=2, learning_rate=3.0)["row val_loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert losses.argmin() < len(losses) - 1, "the last must not be the best"
    assert read(tmp_path / "best.ckpt").facts["position"] == [losses.argmin() + 1, 0, False]


def test_a_checkpoint_of_something_else_is_refused(make_network, images, labels, tmp_path):
    train(tmp_path, epochs=1)
    other = CoTraining({"a": make_network("a")}, "undefended")
    other.compile("sgd")
    with pytest.raises(ValueError, match="of other networks or another optimizer"):
        other.fit(images, labels, epochs=1, verbose=0, callbacks=[Checkpoint(tmp_path)])


def test_a_checkpoint_of_another_precision_is_refused(tmp_path, request):
    train(tmp_path, epochs=1)
    request.getfixturevalue("bfloat16")
    with pytest.raises(ValueError, match=r"compute in float32\. .*Received: bfloat16, float32"):
        train(tmp_path, epochs=1)


def test_data_without_a_position_cannot_go_on(make_network, images, labels, tmp_path):
    def fit():
        keras.utils.set_random_seed(0)
        trainer = CoTraining({"a": make_network("a")}, "undefended")
        trainer.compile("sgd")
        trainer.fit(images, labels, epochs=2, batch_size=6, verbose=0, callbacks=[At(3, stop), Checkpoint(tmp_path)])

    with pytest.raises(StoppedError):
        fit()
    with pytest.raises(ValueError, match=r"such as that of satm_tf\.data\.batches"):
        fit()
