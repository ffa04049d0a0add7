import inspect
import json

import numpy as np
import pandas as pd
import pytest

from satm_tf.data import adience, formats, idx
from satm_tf.data.formats import FORMATS


@pytest.fixture
def classes(tmp_path, write_image):
    """Two classes of five images, and one file that is no image, in sub-folders."""
    for name in ("a", "b"):
        for number in range(5):
            write_image(tmp_path / "classes" / name / f"{number}.jpg", number)
    (tmp_path / "classes" / "b" / "broken.png").touch()
    (tmp_path / "classes" / "b" / "notes.txt").touch()
    return tmp_path / "classes"


def test_the_table_holds_each_format_under_its_name():
    assert list(FORMATS) == ["synthetic_faces", "adience", "utkface", "folder", "table", "idx", "imagenet", "images"]
    for name, entry in FORMATS.items():
        assert entry.name == name
        required = [
            parameter.name
            for parameter in inspect.signature(entry.load).parameters.values()
            if parameter.default is parameter.empty and parameter.name != "root"
        ]
        assert required == list(entry.needs)


def test_options_are_the_loaders():
    assert formats.options("imagenet") == ("synsets", "count", "seed")
    assert formats.options("images") == ()
    assert "fold" in formats.options("adience")
    assert "fold" not in formats.options("folder")
    with pytest.raises(ValueError, match=r"Unknown data format. Did you mean 'folder'.* Received: 'folders'"):
        formats.options("folders")


def test_synthetic_faces_are_written_once_and_read_as_adience(tmp_path):
    options = {"num_subjects": 40, "images_per_subject": 1, "fold": 2}
    data = formats.load("synthetic_faces", tmp_path / "faces", **options)
    assert (data.class_names, data.ordered, data.account.used) == (adience.LABELS, True, 40)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "faces").rglob("*")}
    again = formats.load("adience", tmp_path / "faces", fold=2)
    assert again.test.paths.tolist() == data.test.paths.tolist()
    formats.load("synthetic_faces", tmp_path / "faces", **options, target="gender")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "faces").rglob("*")} == before


def test_options_reach_the_loader(classes, tmp_path, plain_adience):
    assert formats.load("folder", classes, class_names=("b", "a"), ordered=True).class_names == ("b", "a")
    assert formats.load("adience", plain_adience, fold=3, target="gender").class_names == adience.GENDERS
    files = sorted(str(path.relative_to(classes)) for path in classes.rglob("*.jpg"))
    pd.DataFrame({"path": files, "label": [file[0] for file in files]}).to_csv(tmp_path / "table.csv")
    assert formats.load("table", classes, table=tmp_path / "table.csv", test_share=0.5).test.labels.shape == (5,)
    (tmp_path / "index.json").write_text(json.dumps({"0": ["a", "an a"], "1": ["b", "a b"]}))
    data = formats.load("imagenet", classes, synsets=tmp_path / "index.json", count=11)
    assert (len(data.train), len(data.test), data.class_names) == (0, 10, ("an a", "a b"))
    assert formats.options("idx") == tuple(name for name in inspect.signature(idx.load).parameters if name != "root")


def test_images_without_labels(classes):
    data = formats.load("images", classes)
    assert [path.removeprefix(f"{classes.resolve()}/") for path in data.test.paths] == [
        f"{name}/{number}.jpg" for name in "ab" for number in range(5)
    ]
    assert (data.class_names, data.num_classes, len(data.train), len(data.validation)) == ((), 0, 0, 0)
    assert (data.account.rows, data.account.used) == (12, 10)
    assert data.account.unreadable == {"b/broken.png": "empty file"}
    assert data.account.left_out == {"not an image by its name": 1}
    np.testing.assert_array_equal(data.test.labels, np.zeros(10))
    assert not FORMATS["images"].labelled


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("foldr", {}, r"Unknown data format. Did you mean 'folder'\? .* Received: 'foldr'"),
        ("folder", {"test_shar": 0.5}, r"Unknown option of the data format 'folder'. Did you mean 'test_share'\? "),
        ("images", {"fold": 1}, "Unknown option of the data format 'images'. Available: none. Received: 'fold'"),
        ("table", {}, "Data of the format 'table' needs `table`, the CSV file. Received: none"),
        ("table", {"table": None, "seed": 1}, "'table' needs `table`, the CSV file. Received: {'table': None, 'seed'"),
        ("imagenet", {}, "'imagenet' needs `synsets`, the file that numbers the synsets. Received: none"),
        ("adience", {"fold": None}, "`fold` must be one of Adience's five folds, 0 to 4. Received: None"),
    ],
)
def test_refuses(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        formats.load(name, tmp_path, **options)


@pytest.mark.parametrize("name", [name for name, entry in FORMATS.items() if not entry.creates])
def test_a_folder_that_does_not_exist_is_called_that_first(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"folder of the images does not exist. Received: .*nowhere"):
        formats.load(name, tmp_path / "nowhere", no_such_option=1)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"must be in a folder; this is a file. Received: .*file"):
        formats.load(name, tmp_path / "file")


def test_a_folder_without_images_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"No image under .*empty is usable. Received: no file"):
        formats.load("images", tmp_path / "empty")
    (tmp_path / "empty" / "class").mkdir()
    with pytest.raises(ValueError, match=r"No image under .*empty is usable. Received: no file"):
        formats.load("folder", tmp_path / "empty")
