"""What to watch while a stage runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tqdm.auto import tqdm

_SECONDS_BETWEEN_FIGURES = 2.0


class Progress(keras.callbacks.Callback):
    """One progress bar for a whole `fit`, named after its stage, with the time left and the figures worth watching.

    Without a terminal, as in a log, it prints a line for each epoch.

    Args:
        stage: What the bar is called.
        figures: Short name to key of Keras's logs; shown where the logs have the key.

    Example:
        >>> network.fit(train, epochs=3, verbose=0, callbacks=[Progress("fine-tune", {"loss": "val_loss"})])
    """

    def __init__(self, stage: str, figures: Mapping[str, str]):
        super().__init__()
        self.stage = stage
        self.figures = dict(figures)
        self.bar: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._found: dict[str, str] = {}
        self._shown = 0
        self._shown_at = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.bar is None:
            steps = self.params["steps"]
            total, done = steps and steps * self.params["epochs"], (steps or 0) * epoch
            self.bar = tqdm(
                total=total, initial=done, desc=self.stage, unit="step", dynamic_ncols=True, disable=None
            )  # fmt: skip
        self._shown = 0
        self._found["epoch"] = f"{epoch + 1}/{self.params['epochs']}"

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.bar.update(batch + 1 - self._shown)
        self._shown = batch + 1
        if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_FIGURES:
            self._show(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._show(logs)
        if self.bar.disable:
            print(f"{self.stage}: {', '.join(f'{name} {value}' for name, value in self._found.items())}", flush=True)

    def on_train_end(self, logs: Any = None) -> None:
        if self.bar is not None:
            self.bar.close()

    def _show(self, logs: Any) -> None:
        self._shown_at = time.monotonic()
        found = {short: f"{float(logs[key]):.3f}" for short, key in self.figures.items() if key in (logs or {})}
        self._found.update(found)
        self.bar.set_postfix(self._found)


class Pictures(keras.callbacks.Callback):
    """After each epoch, clean images over their adversarial twins, of each network that crafts, for TensorBoard.

    Each column of the strip shows a clean image, the source's adversarial image of it, and their difference around
    grey, magnified until the largest change is black or white.

    Args:
        folder: Folder of event files.
        dataset: Batches of `(images, labels)`, of which the first is shown.
        most: How many images of that batch to show.

    Example:
        >>> trainer.fit(train, epochs=5, callbacks=[Pictures("logs/pictures", validation)])
    """

    def __init__(self, folder: str | Path, dataset: tf.data.Dataset, *, most: int = 8):
        super().__init__()
        self.folder = Path(folder)
        self.dataset = dataset
        self.most = most

    def on_train_begin(self, logs: Any = None) -> None:
        self.images, self.labels = (each[: self.most] for each in next(iter(self.dataset)))
        self._craft = tf.function(self.model.craft)
        self._writer = tf.summary.create_file_writer(str(self.folder))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self._writer.as_default(step=epoch):
            for source, adversarial in self._craft(self.images, self.labels).items():
                tf.summary.image(source, strip(self.images, adversarial)[None])
        self._writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        self._writer.close()


def strip(images: tf.Tensor, adversarial: tf.Tensor) -> tf.Tensor:
    """One picture of three rows: clean, adversarial, and their difference, magnified, around grey.

    Args:
        images: float32 `[count, height, width, 3]` in [0, 1].
        adversarial: Like `images`.

    Returns:
        float32 `[3 height, count width, 3]` in [0, 1].
    """
    difference = adversarial - images
    magnified = 0.5 + tf.math.divide_no_nan(difference, 2 * tf.reduce_max(tf.abs(difference)))
    return tf.concat([tf.concat(tf.unstack(row), axis=1) for row in (images, adversarial, magnified)], axis=0)
