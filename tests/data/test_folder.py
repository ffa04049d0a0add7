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
    assert account.left_out == {"no image by its name": 1}
    assert account.unreadable == {"cat/empty.png": "empty file"}


def test_links_out_of_the_folder_are_not_followed(root, tmp_path_factory, write_image):
    other = tmp_path_factory.mktemp("other")
    write_image(other / "x.jpg")
    (root / "fox").symlink_to(other)
    (root / "cat" / "more").symlink_to(other)
    (root / "cat" / "x.jpg").symlink_to(other / "x.jpg")
    data = folder.load(root)
    assert (data.account.rows, data.account.left_out) == (32, {"outside the data folder": 2})


def test_two_names_of_one_file_stay_on_one_side(root):
    (root / "dog" / "link.jpg").symlink_to(root / "cat" / "0" / "cat0.jpeg")
    for seed in range(10):
        data = folder.load(root, test_share=0.3, validation_share=0.3, seed=seed)
        holders = [split for split in (data.train, data.validation, data.test) if any("cat0" in p for p in split.paths)]
        assert len(holders) == 1


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
    with pytest.raises(FileNotFoundError, match="one sub-folder a class"):
        folder.load(tmp_path)
    for image in range(5):
        write_image(tmp_path / "only" / f"{image}.jpg", image)
    with pytest.raises(ValueError, match=r"at least two classes. Received: only \['only'\]"):
        folder.load(tmp_path)
