"""Progress and pictures of a running stage."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from satm_tf.bars import Bar, shortened

_SECONDS_BETWEEN_FIGURES = 2.0
_LINE = 80
# The width left in a line by the other parts of the bar.
_STAGE = 24


class Progress(keras.callbacks.Callback):
    """One progress bar for a whole `fit`, named after its stage, with the time left and the figures worth watching.

    Without a terminal, as in a log, it prints a line for each epoch. Up to three figures fit into 80 columns.

    Args:
        stage: The label of the bar.
        figures: A key of Keras's logs for each short name, or several, whose mean is shown; missing keys are ignored.

    Example:
        >>> network.fit(train, epochs=3, verbose=0, callbacks=[Progress("fine-tune", {"loss": "val_loss"})])
        fine-tune: epoch 1/3  loss .41
    """

    def __init__(self, stage: str, figures: Mapping[str, str | Sequence[str]]):
        super().__init__()
        self.stage = stage
        self.figures = {short: [keys] if isinstance(keys, str) else list(keys) for short, keys in figures.items()}
        self.bar: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._found: dict[str, str] = {}
        self._shown = 0
        self._shown_at = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.bar is None:
            steps = self.params["steps"]
            total, done = steps and steps * self.params["epochs"], (steps or 0) * epoch
            shape = "{desc} {percentage:3.0f}%|{bar}| {remaining}{postfix}" if total else None
            self.bar = Bar(total, self.stage, "step", initial=done, bar_format=shape)
        self._shown = 0
        self._epoch = f"{epoch + 1}/{self.params['epochs']}"
        self.bar.set_description_str(f"{shortened(self.stage, _STAGE)} {self._epoch}")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.bar.update(batch + 1 - self._shown)
        self._shown = batch + 1
        if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_FIGURES:
            self._show(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._show(logs)
        if self.bar.disable:
            rest = f": epoch {self._epoch}  {self._figures()}"
            print(f"{shortened(self.stage, _LINE - len(rest))}{rest}", flush=True)

    def on_train_end(self, logs: Any = None) -> None:
        if self.bar is not None:
            self.bar.close()

    def _show(self, logs: Any) -> None:
        self._shown_at = time.monotonic()
        for short, keys in self.figures.items():
            values = [float(logs[key]) for key in keys if key in (logs or {})]
            if values:
                self._found[short] = _brief(math.fsum(values) / len(values))
        self.bar.set_postfix_str(self._figures())

    def _figures(self) -> str:
        return "  ".join(f"{short} {self._found[short]}" for short in self.figures if short in self._found)


def _brief(value: float) -> str:
    """Two decimals, without the leading zero."""
    return f"{value:.2f}".removeprefix("0") if value < 100 else f"{value:.3g}"


class Pictures(keras.callbacks.Callback):
    """Shows clean and adversarial images of each source in TensorBoard after each epoch.

    Each column of the strip shows a clean image, the source's adversarial image of it, and their difference around
    grey, magnified so that the largest change is black or white.

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
        self._craft = tf.function(self.model.craft, autograph=False)
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
