import numpy as np
import pytest

from satm_tf.data import Account, Examples, ImageData

FILES = Examples(labels=[3, 1, 2], paths=["a", "b", "c"], subjects=["x", "y", "x"], orientations=[1, 6, 1])
PIXELS = Examples(labels=[3, 1, 2], images=np.arange(3 * 12, dtype=np.uint8).reshape(3, 2, 2, 3))


def test_select_takes_every_column():
    some = FILES.select([2, 1])
    assert some.paths.tolist() == ["c", "b"]
    assert some.labels.tolist() == [2, 1]
    assert some.subjects.tolist() == ["x", "y"]
    assert some.orientations.tolist() == [1, 6]
    assert some.labels.dtype == np.int32


def test_select_by_mask_and_again():
    some = PIXELS.select(np.array([True, False, True])).select([1])
    assert len(some) == 1
    assert some.images.shape == (1, 2, 2, 3)
    np.testing.assert_array_equal(some.images[np.array([0])], PIXELS.images[2:])


def test_select_none_of_none():
    none = Examples(labels=[], paths=[])
    assert len(none.select([])) == len(none.limit(3)) == 0


def test_limit_is_a_seeded_choice_in_order():
    many = Examples(labels=np.arange(1000), paths=[str(row) for row in range(1000)])
    some = many.limit(100, seed=1)
    assert len(some) == 100
    assert (np.diff(some.labels) > 0).all()
    np.testing.assert_array_equal(some.labels, many.limit(100, seed=1).labels)
    assert some.labels.tolist() != many.limit(100, seed=2).labels.tolist()
    assert many.limit(1000) is many


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "exactly one .* Received: neither"),
        ({"paths": ["a"], "images": np.zeros((1, 2, 2, 3), np.uint8)}, "exactly one .* Received: both"),
        ({"paths": ["a", "b"]}, "the same length. Received: {'labels': 1, 'paths': 2}"),
        ({"images": np.zeros((1, 2, 2), np.uint8)}, r"must be RGB.* Received: shape \(1, 2, 2\)"),
    ],
)
def test_refuses(columns, message):
    with pytest.raises(ValueError, match=message):
        Examples(labels=[0], **columns)


def test_data_counts_classes_and_limits_each_split():
    data = ImageData(FILES, FILES, PIXELS, ("a", "b", "c", "d"), True, Account(9, 9))
    assert data.num_classes == 4
    assert [len(split) for split in (data.limit(2).train, data.limit(1).validation, data.limit(5).test)] == [2, 1, 3]
