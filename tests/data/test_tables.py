import os

import pandas as pd
import pytest

from satm_tf.data import tables


@pytest.fixture
def root(tmp_path, write_image):
    for image in range(24):
        write_image(tmp_path / "images" / f"{image}.jpg", image)
    return tmp_path / "images"


@pytest.fixture
def frame(root):
    rows = range(24)
    return pd.DataFrame(
        {
            "path": [f"{row}.jpg" for row in rows],
            "label": ["young", "old"] * 12,
            "subject": [f"s{row // 2}" for row in rows],
            "fold": [row // 8 for row in rows],
            "camera": "ignored",
        }
    )


def test_csv_with_folds(root, frame, tmp_path):
    frame.to_csv(tmp_path / "table.csv", index=False)
    data = tables.load(tmp_path / "table.csv", root, class_names=("young", "old"), ordered=True, fold=1)
    assert [os.path.basename(path) for path in data.test.paths] == [f"{row}.jpg" for row in range(8, 16)]
    assert data.test.labels.tolist() == [0, 1] * 4
    assert not set(data.train.subjects) & set(data.validation.subjects)
    assert (len(data.train), len(data.validation)) == (14, 2)
    assert (data.class_names, data.ordered) == (("young", "old"), True)


def test_frame_without_folds_is_split_by_subject(root, frame):
    data = tables.load(frame.drop(columns="fold"), root, test_share=0.25, validation_share=0.5)
    sides = [set(split.subjects) for split in (data.train, data.validation, data.test)]
    assert [len(side) for side in sides] == [4, 5, 3] or [len(side) for side in sides] == [5, 4, 3]
    assert len(set.union(*sides)) == 12
    assert (data.class_names, data.ordered) == (("old", "young"), False)


def test_without_subjects_each_image_is_its_own(root, frame):
    data = tables.load(frame[["path", "label"]], root, test_share=0.25)
    assert len(set(data.test.subjects)) == len(data.test) == 6


@pytest.mark.parametrize(
    ("labels", "class_names", "expected", "names"),
    [
        (["10", "9"], None, [1, 0], ("9", "10")),
        ([1, 0], ("no", "yes"), [1, 0], ("no", "yes")),
        (["9", "10"], ("10", "9"), [1, 0], ("10", "9")),
        ([" b ", "a"], None, [1, 0], ("a", "b")),
    ],
)
def test_labels(root, frame, labels, class_names, expected, names):
    data = tables.load(frame.assign(label=labels * 12), root, fold=0, class_names=class_names)
    assert data.class_names == names
    assert data.test.labels.tolist() == expected * 4


def test_rows_without_label_or_subject_are_counted(root, frame):
    frame = frame.astype(object)
    frame.loc[0, "label"] = None
    frame.loc[1, "label"] = ""
    frame.loc[2, "subject"] = float("nan")
    account = tables.load(frame, root, fold=1).account
    assert account.left_out == {"no label": 2, "no subject": 1}
    assert account.used == 21


def test_one_image_of_two_subjects_keeps_them_together(root, frame):
    (root / "1.jpg").write_bytes((root / "3.jpg").read_bytes())  # of s0 and of s1, both old
    for seed in range(8):
        data = tables.load(frame.drop(columns="fold"), root, test_share=0.4, validation_share=0.4, seed=seed)
        assert sum({"s0", "s1"} <= set(split.subjects) for split in (data.train, data.validation, data.test)) == 1
        assert data.account.duplicates == (("1.jpg", "3.jpg"),)


def test_one_path_with_two_labels_is_left_out(root, frame):
    frame.loc[1, "path"] = "0.jpg"
    account = tables.load(frame, root, fold=1).account
    assert account.left_out == {"the same image has another label too": 2}


@pytest.mark.parametrize("path", ["8.jpg", "sub/../8.jpg"])
def test_one_image_in_two_folds_is_used_in_the_first(root, frame, path):
    (root / "sub").mkdir()
    frame.loc[16, "path"] = path
    data = tables.load(frame, root, fold=1)
    assert data.account.left_out == {"the same image is in another split or fold": 1}
    assert len(data.test) == 8


@pytest.mark.parametrize(
    ("contents", "received"),
    [
        (b"", "must name each column once. Received: an empty file"),
        (b"\n\n", "must name each column once. Received: an empty file"),
        (b"path,label,label\na,b,c\n", r"must name each column once. Received: \['path', 'label', 'label'\]"),
        ("path,label\na.jpg,b\n".encode("utf-16"), "save it as UTF-8. Received: 'utf-8' codec"),
        ("path,label\na.jpg,b\n".encode("utf-16-le"), "save it as UTF-8. Received: zero bytes"),
        ("path,label\n\xe9.jpg,b\n".encode("latin-1"), "save it as UTF-8. Received: 'utf-8' codec"),
        (b"path,label\na.jpg,b\na.jp", "must have 2 fields on each line.* Received: 1 fields on line 3"),
        (b"path,label\na.jpg,b,c\n", "must have 2 fields on each line.* Received: 3 fields on line 2"),
        (b'path,label\na.jpg,"b\n', "must have 2 fields on each line.* Received: unexpected end of data on line 2"),
    ],
)
def test_a_damaged_table_is_named(root, tmp_path, contents, received):
    (tmp_path / "table.csv").write_bytes(contents)
    with pytest.raises(ValueError, match=received) as error:
        tables.load(tmp_path / "table.csv", root)
    assert str(tmp_path / "table.csv") in str(error.value)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {}, "Unknown fold. Available: 0, 1, 2. Received: None"),
        ({}, {"fold": 3}, "Unknown fold. Available: 0, 1, 2. Received: 3"),
        ({}, {"fold": 0, "class_names": ("young", "olde")}, "one of 2 classes. Did you mean 'olde'.* Received: 'old'"),
        ({"label": 2}, {"fold": 0, "class_names": ("young", "old")}, "one of 2 classes. Received: '2'"),
        ({"label": -1}, {"fold": 0, "class_names": ("young", "old")}, "one of 2 classes. Received: '-1'"),
        ({"label": "young"}, {"fold": 0}, r"at least two classes. Received: only \['young'\]"),
        ({"subject": "all"}, {"fold": 0}, r"No subject may be on two sides.*first 'all' on \['0', '1', '2'\]"),
        ({}, {"fold": 0, "ordered": True}, "with `ordered`, give `class_names`"),
    ],
)
def test_refuses(root, frame, change, options, message):
    with pytest.raises(ValueError, match=message):
        tables.load(frame.assign(**change), root, **options)


def test_missing_column_table_and_folder(root, frame, tmp_path):
    with pytest.raises(ValueError, match=r"needs the columns path and label. Received: \['file', 'label'"):
        tables.load(frame.rename(columns={"path": "file"}), root)
    with pytest.raises(FileNotFoundError, match=r"The table is missing. Received: .*nowhere.csv"):
        tables.load(tmp_path / "nowhere.csv", root)
    with pytest.raises(FileNotFoundError, match=r"folder of the images does not exist. Received: .*nowhere"):
        tables.load(frame, tmp_path / "nowhere")


def test_a_fold_for_a_table_without_folds_is_refused(root, frame):
    with pytest.raises(ValueError, match=r"Unknown fold. .* Received: 2"):
        tables.load(frame.drop(columns="fold"), root, fold=2)


def test_a_path_out_of_the_root_is_left_out(root, frame, write_image):
    write_image(root.parent / "secret.jpg")
    frame.loc[0, "path"] = "../secret.jpg"
    assert tables.load(frame, root, fold=1).account.left_out == {"outside the data folder": 1}
