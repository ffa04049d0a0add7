import os

import pytest

from satm_tf.data import utkface
from satm_tf.data.adience import GENDERS, LABELS


@pytest.fixture
def root(tmp_path, write_image):
    """Each group's first and last age, both genders, both ways of naming, in two folders."""
    ages = (0, 2, 4, 6, 8, 12, 15, 20, 25, 32, 38, 43, 48, 53, 60, 100)
    for number, age in enumerate(ages):
        for gender in (0, 1):
            chip = ".chip.jpg" if number % 2 else ""
            write_image(tmp_path / f"part{gender + 1}" / f"{age}_{gender}_3_2017011617452512{gender}.jpg{chip}", number)
    return tmp_path


def _by_name(data):
    splits = (data.train, data.validation, data.test)
    return {
        os.path.basename(path): data.class_names[label]
        for split in splits
        for path, label in zip(split.paths, split.labels, strict=True)
    }


def test_groups_and_genders_are_read_from_the_names(root):
    ages = utkface.load(root)
    assert {name.split("_")[0]: label for name, label in _by_name(ages).items()} == {
        age: label for label in LABELS for age in label.split("-")
    }
    assert (ages.class_names, ages.ordered, ages.account.used) == (LABELS, True, 32)
    genders = utkface.load(root, target="gender")
    assert {(name.split("_")[1], label) for name, label in _by_name(genders).items()} == {
        ("0", "male"),
        ("1", "female"),
    }
    assert (genders.class_names, genders.ordered) == (GENDERS, False)


def test_other_ages_and_names_are_counted(root, write_image):
    for age in (3, 7, 24, 59, 101, 116):
        write_image(root / f"{age}_0_0_20170116174525125.jpg", age)
    for name in (
        "61_1_20170109150557335.jpg.chip.jpg",
        "5_2_0_2017.jpg",
        "5_1_5_2017.jpg",
        "x5_1_1_2017.jpg",
        "5_1.jpg",
    ):
        write_image(root / name)
    (root / "license.txt").touch()
    (root / "9_0_0_20170116174525125.jpg").touch()
    account = utkface.load(root).account
    assert account.left_out == {
        "an age between two groups": 6,
        "a name without age, gender, race and time": 5,
        "not an image by its name": 1,
    }
    assert account.unreadable == {"9_0_0_20170116174525125.jpg": "empty file"}
    assert (account.rows, account.used, account.mapped) == (45, 32, {})
    assert utkface.load(root, target="gender").account.used == 38


def test_equal_files_stay_together_or_are_left_out(root, write_image):
    """Of one age; of two ages in one group; of an age in a group and one between; of two genders."""
    pairs = (("5_0_0_1.jpg", "5_0_0_2.jpg"), ("9_0_0_1.jpg", "10_0_0_1.jpg"), ("13_1_0_1.jpg", "12_1_0_1.jpg"))
    for seed, (one, other) in enumerate((*pairs, ("26_0_0_1.jpg", "26_1_0_1.jpg"))):
        write_image(root / one, seed)
        (root / other).write_bytes((root / one).read_bytes())
    for seed in range(8):
        ages = utkface.load(root, test_share=0.4, validation_share=0.4, seed=seed)
        for pair in (pairs[0], ("26_0_0_1.jpg", "26_1_0_1.jpg")):
            holders = [
                {os.path.basename(path) for path in split.paths} for split in (ages.train, ages.validation, ages.test)
            ]
            assert [len(set(pair) & names) for names in holders if set(pair) & names] == [2]
    assert ages.account.left_out == {"the same image has another label too": 4}
    assert len(ages.account.duplicates) == 4
    genders = utkface.load(root, target="gender").account
    assert genders.left_out == {"the same image has another label too": 2}
    assert genders.used == 32 + 6


def test_refuses(root, tmp_path):
    with pytest.raises(ValueError, match=r"Did you mean 'gender'.* Received: 'gendr'"):
        utkface.load(root, target="gendr")
    with pytest.raises(FileNotFoundError, match=r"does not exist. Received: .*nowhere"):
        utkface.load(tmp_path / "nowhere")
