"""What people watch while a stage runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from tqdm.auto import tqdm

from satm_tf.training.checkpoint import Checkpoint

__all__ = ["Checkpoint", "Progress"]


class Progress(keras.callbacks.Callback):
    """One progress bar for a whole `fit`, named after its stage, with the figures worth watching.

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

    def on_train_begin(self, logs: Any = None) -> None:
        steps = self.params["steps"]
        total = steps and steps * self.params["epochs"]
        self.bar = tqdm(total=total, desc=self.stage, unit="step", dynamic_ncols=True, disable=None)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.bar.update(batch + 1 - getattr(self, "_shown", 0))
        self._shown = batch + 1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._shown = 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        found = {short: f"{logs[key]:.3f}" for short, key in self.figures.items() if key in (logs or {})}
        self.bar.set_postfix({"epoch": f"{epoch + 1}/{self.params['epochs']}", **found})

    def on_train_end(self, logs: Any = None) -> None:
        self.bar.close()
