"""A training that can be stopped in many ways, here or as a process of its own.

`python resumable.py FOLDER REFERENCE KILL_AT_STEP` trains in REFERENCE, and then, from the same start, in FOLDER, where
it ends by SIGKILL. `python resumable.py FOLDER` resumes there. What remains at the end goes into `result.npz`. In these
all on which a step depends is in use: networks as they were, sparring partners, dropout, batch normalisation,
augmentation, a drawn epsilon, a domain head, a loss scale, an optimizer with a schedule.
"""

import functools
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

from satm_tf import CoTraining, ImageClassifier
from satm_tf.attacks import RandomisedStep
from satm_tf.data import Augmentation, Examples, batches
from satm_tf.models.normalization import BatchNormalization
from satm_tf.training import Checkpoint, UniformEpsilon

SIZE, CLASSES, COUNT, BATCH, EPOCHS = 12, 3, 48, 8, 3
STEPS = COUNT // BATCH


class At(keras.callbacks.Callback):
    """Does something once so many steps are behind the model."""

    def __init__(self, step, action):
        super().__init__()
        self.step = step
        self.action = action

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.step) == self.step:
            self.action()


def make_network(name, batch_norm):
    images = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(6, 3, 2, use_bias=not batch_norm)(images)
    if batch_norm:
        x = BatchNormalization()(x)
    x = keras.layers.Dropout(0.2)(keras.layers.ReLU()(x))
    return ImageClassifier(keras.Model(images, x), CLASSES, image_shape=(SIZE, SIZE, 3), dropout=0.3, name=name)


def make_examples():
    rng = np.random.default_rng(0)
    return Examples(
        labels=(np.arange(COUNT) % CLASSES).astype(np.int32),
        images=rng.integers(0, 255, (COUNT, SIZE, SIZE, 3), dtype=np.uint8),
    )


@functools.cache
def make_trainer(policy, everything, learning_rate, epochs, optimizer, **compiled):
    """A trainer and its state at the start: all trainings of one kind share it, so that it is traced once."""
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy("mixed_float16" if everything else policy)
    networks, fields = {"a": make_network("a", batch_norm=True)}, {"scheme": "undefended"}
    keras.config.set_dtype_policy(policy)
    if everything:
        networks["b"] = make_network("b", batch_norm=False)
        fields = {
            "scheme": "satm",
            "learns_from": ("others", "before", "past", "sparring_others"),
            "mixing": "images",
            "snapshots": 2,
            "snapshot_steps": 2,
            "attack": RandomisedStep(epsilon=0.1),
            "epsilon_schedule": UniformEpsilon(low=0.3),
        }
    trainer = CoTraining(networks, ordered=True, **fields)
    decay = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * STEPS)
    trainer.compile(optimizer() if optimizer else keras.optimizers.Adam(decay), **compiled)
    return trainer, [variable.numpy().copy() for variable in trainer.state()]


def train(
    folder, *, callbacks=(), every_seconds=0.0, epochs=EPOCHS, learning_rate=0.01, everything=False, optimizer=None,
    **compiled,
):  # fmt: skip
    """Trains in a folder, from its last checkpoint on; gives all that is left: state, history, rows.

    One network with dropout and batch normalisation on clean images, unless `everything` is asked for.
    """
    policy = keras.config.dtype_policy().name
    trainer, start = make_trainer(policy, everything, learning_rate, max(epochs, EPOCHS), optimizer, **compiled)
    for variable, value in zip(trainer.state(), start, strict=True):
        variable.assign(value.copy())  # whose memory TensorFlow may keep
    examples = make_examples()
    checkpoint = Checkpoint(folder, every_seconds=every_seconds)
    augmentation = Augmentation() if everything else None
    data = batches(examples, image_size=SIZE, batch_size=BATCH, shuffle=True, augmentation=augmentation)
    next(iter(data))  # A look at the data changes nothing.
    history = trainer.fit(
        data,
        validation_data=batches(examples, image_size=SIZE, batch_size=BATCH),
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, checkpoint],
    )
    state = {str(index): variable.numpy().copy() for index, variable in enumerate(trainer.state())}
    rows = {f"row {key}": np.array([row[key] for row in checkpoint.rows]) for key in checkpoint.rows[0]}
    return {**state, **rows, **{key: np.array(values) for key, values in history.history.items()}}


def main(folder, reference=None, kill_at=None):
    if reference is not None:
        np.savez(Path(reference) / "result.npz", **train(reference, everything=True))
        train(folder, callbacks=[At(int(kill_at), lambda: os.kill(os.getpid(), signal.SIGKILL))], everything=True)
    np.savez(Path(folder) / "result.npz", **train(folder, everything=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
