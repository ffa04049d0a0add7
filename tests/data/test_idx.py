import gzip
import struct

import numpy as np
import pytest

from satm_tf.data import idx


def _bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (50, 5, 7)),
        "train-labels-idx1-ubyte": np.arange(50) % 4,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (10, 5, 7)),
        "t10k-labels-idx1-ubyte": np.arange(10) % 4,
    }


@pytest.fixture
def root(tmp_path, arrays):
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(_bytes(array))
    return tmp_path


def _check(data, arrays):
    assert (len(data.train), len(data.validation), len(data.test)) == (45, 5, 10)
    assert data.train.images.shape == (45, 5, 7, 3)
    assert (data.class_names, data.ordered, data.account.used) == (("0", "1", "2", "3"), False, 60)
    test = data.test.images[np.arange(10)]
    assert test.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(test[..., channel], arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.test.labels, arrays["t10k-labels-idx1-ubyte"])
    # Every training image is in one of the two parts, with its own label.
    both = [
        (pixels[..., 0].tobytes(), label)
        for part in (data.train, data.validation)
        for pixels, label in zip(part.images[np.arange(len(part))], part.labels, strict=True)
    ]
    images, labels = arrays["train-images-idx3-ubyte"].astype(np.uint8), arrays["train-labels-idx1-ubyte"]
    assert sorted(both) == sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))


def test_plain(root, arrays):
    _check(idx.load(root), arrays)


def test_gzip_and_the_other_spelling(root, arrays):
    for path in list(root.iterdir()):
        (root / f"{path.name.replace('-idx', '.idx')}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    _check(idx.load(root), arrays)


def test_options(root):
    data = idx.load(root, limit=20, validation_share=0.25, class_names="abcd", seed=3)
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 5, 10)
    assert data.class_names == tuple("abcd")
    assert str(data.account).splitlines() == ["60 rows, 30 used", "  left out, over the limit: 30"]
    again = idx.load(root, limit=20, validation_share=0.25, class_names="abcd", seed=3)
    np.testing.assert_array_equal(data.train.labels, again.train.labels)


def test_no_class_may_be_missing_a_name(root):
    with pytest.raises(ValueError, match=r"train labels .* must be below 3, the number of classes. Received: 3"):
        idx.load(root, class_names="abc")


def test_a_test_label_that_training_lacks(root):
    (root / "t10k-labels-idx1-ubyte").write_bytes(_bytes(np.arange(10)))
    with pytest.raises(ValueError, match=r"t10k labels .* must be below 4, the number of classes. Received: 9"):
        idx.load(root)


def test_one_class_only(root):
    (root / "train-labels-idx1-ubyte").write_bytes(_bytes(np.full(50, 3)))
    with pytest.raises(ValueError, match=r"at least two classes. Received: only \['3'\]"):
        idx.load(root)


GOOD = _bytes(np.zeros((50, 5, 7)))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "truncated or is not an IDX file"),
        (GOOD[:7], "truncated or is not an IDX file"),
        (b"\0\0\x08\x01" + GOOD[4:], "must start with the magic number"),
        (b"\0\0\x0d\x03" + GOOD[4:], "must start with the magic number"),
        (b"\x1f\x8b" + GOOD[2:], "must start with the magic number"),
        (GOOD[:-1], "must hold 50 x 5 x 7 bytes.*Received: one of 1749"),
        (GOOD + b"x", "must hold 50 x 5 x 7 bytes.*more"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "at most 4,294,967,296 bytes"),
        (_bytes(np.zeros((49, 5, 7))), "needs a label. Received: 49 images, 50 labels"),
    ],
)
def test_refuses(root, contents, message):
    (root / "train-images-idx3-ubyte").write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        idx.load(root)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (gzip.compress(GOOD, mtime=0)[:-20], "truncated or is not an IDX file"),
        (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "truncated or is not an IDX file"),
        (GOOD, "truncated or is not an IDX file"),
        (gzip.compress(GOOD + bytes(10_000_000), mtime=0), "must hold 50 x 5 x 7 bytes.*more"),
    ],
)
def test_refuses_gzip(root, contents, message):
    (root / "train-images-idx3-ubyte").unlink()
    (root / "train-images-idx3-ubyte.gz").write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        idx.load(root)


def test_missing_files_say_what_is_expected(root):
    (root / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"four files.* Received: .*, without t10k-labels-idx1-ubyte"):
        idx.load(root)
    with pytest.raises(FileNotFoundError, match=r"folder of the images does not exist. Received: .*nowhere"):
        idx.load(root / "nowhere")
