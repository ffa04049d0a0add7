"""The file of predictions: whole, in parts, and as earlier releases wrote it."""

import io

import numpy as np
import pandas as pd
import pytest

from satm_tf.evaluation import Predictions
from satm_tf.evaluation.predictions import Cell

SOURCES = [f"scheme/{name}" for name in "abcd"]


class Watched(io.FileIO):
    """A file that counts the bytes read from it."""

    count = 0

    def read(self, size=-1):
        found = super().read(-1 if size is None else size)
        self.count += len(found)
        return found


@pytest.fixture(scope="module")
def predictions():
    """Random classes of 5,000 images: by attack, then source, so that no source's cells stand together."""
    cells = [Cell("clean", 0.0, "", target) for target in SOURCES]
    cells += [Cell(attack, 0.1, source, target) for attack in "xy" for source in SOURCES for target in SOURCES]
    generator = np.random.default_rng(0)
    predicted = generator.integers(0, 8, [len(cells), 5000]).astype(np.uint8)
    return Predictions(pd.DataFrame(cells), predicted, generator.integers(0, 8, 5000).astype(np.int32), 8)


def assert_equal(read, expected, kept=slice(None)):
    pd.testing.assert_frame_equal(read.cells, expected.cells[kept].reset_index(drop=True))
    np.testing.assert_array_equal(read.predicted, expected.predicted[kept])
    assert read.predicted.dtype == expected.predicted.dtype
    np.testing.assert_array_equal(read.labels, expected.labels)


def test_one_sources_part_is_read_alone(predictions, tmp_path):
    path = tmp_path / "predictions.npz"
    predictions.save(path)
    assert path.stat().st_size < 0.5 * predictions.predicted.nbytes, "three bits for each of eight classes, not eight"
    assert_equal(Predictions.load(path), predictions)
    with Watched(path) as file:
        part = Predictions.load(file, sources=["", SOURCES[2]])
    assert_equal(part, predictions, predictions.cells.source.isin(["", SOURCES[2]]).to_numpy())
    # A third of the cells; the rest is labels, names and the archive's directory.
    assert file.count < 0.45 * path.stat().st_size
    for unknown in (["", "e"], []):
        with pytest.raises(ValueError, match=r"only of the sources \['', 'scheme/a'"):
            Predictions.load(path, sources=unknown)


def test_a_file_in_which_all_sources_are_one_array_is_read_too(predictions, tmp_path):
    cells = {name: predictions.cells[name].to_numpy(float if name == "epsilon" else str) for name in predictions.cells}
    others = {"predicted": predictions.predicted, "labels": predictions.labels, "num_classes": 8}
    np.savez_compressed(tmp_path / "old.npz", **cells, **others)
    assert_equal(Predictions.load(tmp_path / "old.npz"), predictions)
    chosen = predictions.cells.source.eq(SOURCES[1]).to_numpy()
    assert_equal(Predictions.load(tmp_path / "old.npz", sources=[SOURCES[1]]), predictions, chosen)


def test_a_truncated_file_is_named(predictions, tmp_path):
    predictions.save(tmp_path / "p.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]
    whole = (tmp_path / "p.npz").read_bytes()
    (tmp_path / "p.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="does not hold predictions; delete it"):
        Predictions.load(tmp_path / "p.npz")
