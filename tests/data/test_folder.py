import os

import pytest

from satm_tf.data import folder


@pytest.fixture
def root(tmp_path, write_image):
    for name in ("cat", "dog", "eel"):
        for image in range(10):
            write_image(tmp_path / name / f"{image % 2}" / f"{name}{image}.{'JPG' if image % 2 else 'jpeg'}", image)
    (tmp_path / "README.txt").write_text("not a class")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_drawn_splits(root):
    data = folder.load(root, test_share=0.2, validation_share=0.25)
    assert (data.class_names, data.ordered) == (("cat", "dog", "eel"), False)
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [18, 6, 6]
    assert len({path for split in splits for path in split.paths}) == 30
    for split in splits:
        for path, label in zip(split.paths, split.labels, strict=True):
            assert f"/{data.class_names[label]}/" in path


def test_ordered_classes_keep_their_order(root):
    data = folder.load(root, class_names=("eel", "cat", "dog"), ordered=True)
    assert data.ordered
    assert all(
        ("/eel/" in path) == (label == 0) for path, label in zip(data.train.paths, data.train.labels, strict=True)
    )


@pytest.mark.parametrize(("names", "drawn"), [(("train", "val", "test"), 10), (("train", "test"), 2)])
def test_given_splits(tmp_path, write_image, names, drawn):
    for side in names:
        for name in ("a", "b"):
            for image in range(10 if side == "train" else 5):
                write_image(tmp_path / side / name / f"{image}.jpg", image)
    data = folder.load(tmp_path, validation_share=0.1)
    assert (len(data.test), len(data.validation), len(data.train)) == (10, drawn, 30 - 10 - drawn if drawn == 2 else 20)
    assert all("/test/" in path for path in data.test.paths)
    assert data.class_names == ("a", "b")


def test_other_files_are_counted(root):
    (root / "cat" / "Thumbs.db").write_text("x")
    (root / "cat" / "empty.png").touch()
    account = folder.load(root).account
    assert (account.rows, account.used) == (32, 30)
    assert account.left_out == {"not an image by its name": 1}
    assert account.unreadable == {"cat/empty.png": "empty file"}


def test_links_out_of_the_folder_are_not_followed(root, tmp_path_factory, write_image):
    other = tmp_path_factory.mktemp("other")
    write_image(other / "x.jpg")
    (root / "fox").symlink_to(other)
    (root / "cat" / "more").symlink_to(other)
    (root / "cat" / "x.jpg").symlink_to(other / "x.jpg")
    data = folder.load(root)
    assert (data.account.rows, data.account.left_out) == (32, {"outside the data folder": 2})


def _again(path, how, source):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.read_bytes()) if how == "copy" else getattr(path, how)(source)


@pytest.mark.parametrize("how", ["symlink_to", "hardlink_to", "copy"])
def test_two_names_of_one_image_stay_on_one_side(root, how):
    _again(root / "cat" / "again.jpg", how, root / "cat" / "0" / "cat0.jpeg")
    for seed in range(5):
        data = folder.load(root, test_share=0.3, validation_share=0.3, seed=seed)
        names = [[os.path.basename(path) for path in split.paths] for split in (data.train, data.validation, data.test)]
        # Of a symbolic link `paths` has the real path, here twice.
        assert sorted(side.count("cat0.jpeg") + side.count("again.jpg") for side in names) == [0, 0, 2]
    assert data.account.duplicates == (("cat/again.jpg", "cat/0/cat0.jpeg"),)
    assert data.account.used == 31


@pytest.mark.parametrize("how", ["symlink_to", "hardlink_to", "copy"])
def test_one_image_in_two_classes_is_left_out(root, how):
    _again(root / "dog" / "again.jpg", how, root / "cat" / "0" / "cat0.jpeg")
    account = folder.load(root).account
    assert account.left_out == {"the same image has another label too": 2}
    assert account.duplicates == (("cat/0/cat0.jpeg", "dog/again.jpg"),)
    assert (account.rows, account.used) == (31, 29)


def test_one_image_in_two_given_splits_is_only_tested_on(tmp_path, write_image):
    for side in ("train", "val", "test"):
        for name in ("a", "b"):
            for image in range(5):
                write_image(tmp_path / side / name / f"{image}.jpg", image)
    for side in ("train", "val"):
        _again(tmp_path / side / "a" / "again.jpg", "copy", tmp_path / "test" / "a" / "0.jpg")
    data = folder.load(tmp_path)
    assert data.account.left_out == {"the same image is in another split or fold": 2}
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 10, 10)


def test_names_that_are_not_utf8(root):
    odd = os.fsencode(root / "cat") + b"/\xe9.jpg"
    with open(odd, "wb") as file:
        file.write((root / "cat" / "0" / "cat0.jpeg").read_bytes())
    account = folder.load(root).account
    assert account.unreadable == {"cat/\\udce9.jpg": "its name is not UTF-8; rename it"}
    str(account).encode("utf-8")
    os.mkdir(os.fsencode(root) + b"/d\xe9j\xe0")
    with pytest.raises(ValueError, match=r"class must be UTF-8; rename its folder. Received: .*'d\\udce9j\\udce0'"):
        folder.load(root)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_names": ("cat", "dogs", "eel")}, ValueError, "Did you mean 'dogs'.* Received: 'dog'"),
        ({"class_names": ("cat", "dog", "eel", "fox")}, FileNotFoundError, r"Received: none for \['fox'\]"),
        ({"ordered": True}, ValueError, "with `ordered`, give `class_names`. Received: None"),
        ({"test_share": 0.0}, ValueError, "above 0 and below 1. Received: 0.0"),
    ],
)
def test_options(root, options, error, message):
    with pytest.raises(error, match=message):
        folder.load(root, **options)


def test_missing_and_empty_and_one_class(tmp_path, write_image):
    with pytest.raises(FileNotFoundError, match=r"folder of the images does not exist. Received: .*nowhere"):
        folder.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="a sub-folder for each class"):
        folder.load(tmp_path)
    for image in range(5):
        write_image(tmp_path / "only" / f"{image}.jpg", image)
    with pytest.raises(ValueError, match=r"at least two classes. Received: only \['only'\]"):
        folder.load(tmp_path)
