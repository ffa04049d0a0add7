"""Training that can be killed at any moment and resumes to the same result."""

from __future__ import annotations

import itertools
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from satm_tf.storage import atomic_file
from satm_tf.training.distribution import Position, greatest, is_chief, several_workers
from satm_tf.training.private_keras import all_layers
from satm_tf.training.robust_validation import RobustValidation
from satm_tf.training.snapshot import Snapshot, read, write

# The state of Keras's callbacks between epochs; the best weights of `EarlyStopping` are saved as arrays.
_CALLBACK_STATE = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    RobustValidation: ("best", "best_epoch"),
}


class Interrupted(KeyboardInterrupt):
    """Raised out of `fit` after a signal (`signal_number`), once the step is finished and everything is saved."""

    def __init__(self, signal_number: int, folder: Path):
        name = signal.Signals(signal_number).name
        super().__init__(
            f"{name} received; the step was finished and saved in {folder}. Re-run the same command to resume."
        )
        self.signal_number = signal_number


class Checkpoint(keras.callbacks.Callback):
    """Saves everything that a training depends on, and lets `CoTraining.fit` resume from there, bit for bit on a CPU.

    It saves the networks, optimizers, counters, metrics, dropout's seeds, the position in the data, the metrics of each
    epoch, and the state of the callbacks `RobustValidation`, `EarlyStopping` and `ReduceLROnPlateau`. The state of
    other callbacks is not saved. It saves at the end of each epoch, at intervals within an epoch, and on SIGINT or
    SIGTERM. The folder holds `last.ckpt`; `previous.ckpt`, which is used if the last one is damaged; and `best.ckpt`,
    of the epoch with the lowest monitored metric.

    Call `fit` with the same networks, scheme, optimizer, metrics, callbacks and data as the first time. If several
    workers train together, one of them writes and all read, so the folder must be on a shared file system.

    Args:
        folder: The folder of this training only; it is created.
        every_seconds: Seconds between checkpoints within an epoch.
        monitor: The metric that decides which epoch is best; lower is better.

    Attributes:
        rows: A mapping for each epoch so far, with `epoch` and its metrics, including epochs before an interruption.

    Raises:
        Interrupted: From `fit`, if SIGINT or SIGTERM was received.

    Example:
        >>> trainer.fit(train, validation_data=validation, epochs=30, callbacks=[Checkpoint("runs/satm/checkpoints")])
    """

    def __init__(self, folder: str | Path, *, every_seconds: float = 300.0, monitor: str = "val_loss"):
        super().__init__()
        self.folder = Path(folder)
        self.every_seconds = every_seconds
        self.monitor = monitor
        self.rows: list[dict[str, float]] = []
        self._position = Position()
        self._stateful: list[Any] = []
        self._received: int | None = None
        self._metric_values: list[np.ndarray] = []
        self._handlers: dict[int, Any] = {}

    def restore(self, model: Any, callbacks: Sequence[Any]) -> Position:
        """Restores a model from the last whole checkpoint; `fit` does so automatically.

        Args:
            model: A compiled `CoTraining`.
            callbacks: Those of the training, whose state is saved too.

        Raises:
            ValueError: If the checkpoint is of other networks, another optimizer, or other metrics or callbacks.

        Warns:
            UserWarning: If a checkpoint is damaged.
        """
        self._stateful = [callback for callback in callbacks if isinstance(callback, tuple(_CALLBACK_STATE))]
        found, broken = None, []
        for name in ("last.ckpt", "previous.ckpt"):
            try:
                found = read(self.folder / name)
                break
            except FileNotFoundError:
                continue
            except ValueError as error:
                broken.append(error)
        instead = "There is no other, so training restarts" if found is None else "The one before it is used"
        for each in broken:
            warnings.warn(f"{each}. {instead}.", stacklevel=2)
        if found is None:
            self.rows, self._position, self._found = [], Position(), None
            return self._position
        precision = _precision(model)
        if found.facts["precision"] != precision:
            raise ValueError(
                f"The checkpoint in {self.folder} is of networks that compute in {found.facts['precision']}. "
                f"Choose that precision, or another folder. Received: {precision}"
            )
        variables, shapes = model.state(), [list(array.shape) for array in found.arrays]
        expected = [list(variable.shape) for variable in variables]
        if shapes[: len(expected)] != expected:
            raise ValueError(
                f"The checkpoint in {self.folder} is of other networks or another optimizer; choose another folder, or "
                f"delete it. Received: {len(shapes)} arrays for {len(expected)} variables of other shapes"
            )
        for kind, saved, present in (
            ("metrics", found.facts["metrics"], [metric.name for metric in model.metrics]),
            (
                "callbacks",
                [name for name, *_ in found.facts["callbacks"]],
                [type(callback).__name__ for callback in self._stateful],
            ),
        ):
            if saved != present:
                raise ValueError(
                    f"The checkpoint in {self.folder} is of other {kind}. Use these, or choose another folder: "
                    f"{', '.join(saved) or 'none'}. Received: {', '.join(present) or 'none'}"
                )
        for variable, array in zip(variables, found.arrays, strict=False):
            variable.assign(array)
        self.rows = found.facts["rows"]
        self._position = Position(*found.facts["position"])
        self._found = Snapshot(found.arrays[len(expected) :], found.facts)
        self._metric_values = _values(model.metrics_variables)
        return self._position

    def on_train_begin(self, logs: Any = None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if is_chief(self.model.distribute_strategy):
            for unfinished in self.folder.glob(".*.ckpt-*.ckpt"):  # left by a killed process
                unfinished.unlink(missing_ok=True)
        self._saved_at = time.monotonic()
        self._epoch, self._step = self._position.epoch, self._position.step
        self._received = None
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        for row in self.rows:
            for key, value in row.items():
                if key != "epoch":
                    self.model.history.history.setdefault(key, []).append(value)
        if self._found is not None:
            arrays = iter(self._found.arrays)
            for callback, (_, values, count) in zip(self._stateful, self._found.facts["callbacks"], strict=True):
                for key, value in values.items():
                    setattr(callback, key, value)
                if count:
                    callback.best_weights = list(itertools.islice(arrays, count))
        self._found = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self._position.epoch and self._position.step:
            self._put_metrics_back()  # Keras has just reset them.
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step = batch + 1
        if self._epoch == self._position.epoch and self._step <= self._position.step:
            return  # already done before the interruption
        late = int(time.monotonic() - self._saved_at >= self.every_seconds)
        late, received = greatest(self.model.distribute_strategy, [late, self._received or 0])
        self._received = received or None
        if late or self._received is not None:
            self._save(Position(self._epoch, self._step))

    def on_test_begin(self, logs: Any = None) -> None:
        # Keras resets them next, but a checkpoint during validation must hold those of the epoch.
        self._metric_values = _values(self.model.metrics_variables)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        # Several workers stop together, at the end of the epoch.
        if self._received is not None and not several_workers(self.model.distribute_strategy):
            self._put_metrics_back()
            self._save(Position(self._epoch, self._step))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._received = greatest(self.model.distribute_strategy, [self._received or 0])[0] or None
        figures = {key: float(value) for key, value in (logs or {}).items()}
        best = min((row.get(self.monitor, np.inf) for row in self.rows), default=np.inf)
        self.rows.append({"epoch": epoch, **figures})
        position = Position(epoch + 1, 0, bool(self.model.stop_training))
        self._save(position, best=figures.get(self.monitor, np.inf) < best)

    def release(self) -> None:
        """Restores the previous signal handlers; `fit` does so however it ends."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _note(self, number: int, frame: Any) -> None:
        self._received = number
        self.release()  # A second signal has its usual effect.

    def _put_metrics_back(self) -> None:
        for variable, value in zip(self.model.metrics_variables, self._metric_values, strict=True):
            variable.assign(value)

    def _save(self, position: Position, best: bool = False) -> None:
        """Writes a checkpoint, and ends the training if a signal was received."""
        self._saved_at = time.monotonic()
        self.model.averages.take_out()  # The optimizers' state holds them.
        arrays = [keras.ops.convert_to_numpy(variable) for variable in self.model.state()]
        saved = []
        for callback in self._stateful:
            keys = next(keys for each, keys in _CALLBACK_STATE.items() if isinstance(callback, each))
            weights = getattr(callback, "best_weights", None) or []
            state = {key: _plain(getattr(callback, key)) for key in keys}
            saved.append((type(callback).__name__, state, len(weights)))
            arrays += weights
        facts = {
            "position": position,
            "rows": self.rows,
            "metrics": [metric.name for metric in self.model.metrics],
            "callbacks": saved,
            "precision": _precision(self.model),
        }
        if is_chief(self.model.distribute_strategy):
            last = self.folder / "last.ckpt"
            write(last, Snapshot(arrays, facts), previous=self.folder / "previous.ckpt")
            if best:
                with atomic_file(self.folder / "best.ckpt") as temporary:
                    shutil.copyfile(last, temporary)
        if self._received is not None:
            raise Interrupted(self._received, self.folder)


def _values(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    # Copies: NumPy shares the memory of a variable on a CPU.
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _precision(model: Any) -> str:
    """The dtypes in which the networks of a `CoTraining` compute, such as "bfloat16, float32"."""
    layers = [layer for network in model.networks.values() for layer in all_layers(network)]
    return ", ".join(sorted({layer.compute_dtype for layer in layers}))


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int) else float(value)
