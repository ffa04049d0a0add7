"""Small networks and images that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import pytest

from satm_tf import ImageClassifier, experiment
from satm_tf.command_line import keep_freed_memory
from satm_tf.experiment.run_folder import RunFolder
from satm_tf.models import Preprocessing

IMAGE_SHAPE = (16, 16, 3)
# With `--dist loadfile` the tests of a file run in one process. These files take longest: begun last, as xdist
# begins those of few tests, they would keep one process busy after all others have ended.
LONGEST = (
    *("test_notebooks", "test_documentation", "test_distribution", "test_running", "test_defence"),
    *("test_every_backbone", "test_reproduce", "test_contract", "test_checkpoint"),
)


def pytest_configure(config):
    # As commands do: a third of TensorFlow's processor time goes into fetching freed memory again. Notebooks' kernels
    # and other Python processes that tests start find the same as glibc's environment variables.
    keep_freed_memory()
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**26)}
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same seed, in any order."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """The run folder of README's first command: the one that SATM_TF_QUICKSTART names, or else one made now.

    It is for reading alone: the tests share it.
    """
    named = os.environ.get("SATM_TF_QUICKSTART")
    folder = Path(named) if named else tmp_path_factory.getbasetemp().parent / "quickstart"
    if not named:
        import fcntl  # which only POSIX systems have

        with folder.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of several test processes, one makes it
            experiment.run(experiment.from_arguments(["--run_dir", str(folder), "--export.scheme", "null"]))
    return RunFolder(folder)


@pytest.fixture(scope="session")
def make_network():
    """A factory of networks of a few hundred weights: no batch normalisation unless asked for."""

    def make(name="network", *, num_classes=4, batch_norm=False, dropout=0.0, width=6):
        images = x = keras.Input(IMAGE_SHAPE)
        x = keras.layers.Conv2D(width, 3, 2, padding="same", activation="tanh", name="first")(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(name="norm")(x)
        x = keras.layers.Conv2D(width, 3, 2, padding="same", activation="tanh", name="second")(x)
        return ImageClassifier(
            keras.Model(images, x, name="backbone"),
            num_classes,
            image_shape=IMAGE_SHAPE,
            preprocessing=Preprocessing(scale=2.0, offset=-1.0),
            pooling="flatten",
            dropout=dropout,
            name=name,
        )

    return make


@pytest.fixture
def images():
    """float32 `[12, 16, 16, 3]` in [0.1, 0.9]."""
    return np.random.default_rng(1).uniform(0.1, 0.9, (12, *IMAGE_SHAPE)).astype(np.float32)


@pytest.fixture
def labels():
    """int32 `[12]` in [0, 4)."""
    return np.arange(12, dtype=np.int32) % 4


@pytest.fixture
def arrays():
    """A function that gives all of a model's state as NumPy arrays, dropout seeds included."""

    def take(model: keras.Model) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(variable) for variable in model.variables]

    return take
