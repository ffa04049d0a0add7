import os

import pandas as pd
import pytest

from satm_tf import storage
from satm_tf.data.intake import admit


@pytest.fixture
def root(tmp_path, write_image):
    for seed, name in enumerate(("a.jpg", "b.jpg", "sub/c.jpg")):
        write_image(tmp_path / "root" / name, seed)
    write_image(tmp_path / "secret" / "s.jpg")
    return tmp_path / "root"


def _table(*paths: str, **columns) -> pd.DataFrame:
    table = pd.DataFrame({"path": paths, "label": 0, "left_out": "", "side": 0})
    return table.assign(subject=table["path"], **columns)


def test_every_row_has_one_fate(root, encode, picture):
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("no image")
    (root / "half.jpg").write_bytes(encode(picture())[:-200])
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    rows, account = admit(
        root,
        _table(
            "a.jpg", "b.jpg", "a.jpg", "gone.jpg", "a.jpg/under.jpg", "empty.jpg", "text.jpg", "half.jpg", "folder.jpg",
            "pipe.jpg", "nul\0.jpg", "sub/c.jpg",
            left_out=[""] * 11 + ["no label"],
        ),
    )  # fmt: skip
    assert rows["file"].to_list() == [os.path.realpath(root / "a.jpg"), os.path.realpath(root / "b.jpg")]
    assert account.left_out == {"named before": 1, "no label": 1}
    assert account.missing == ("gone.jpg", "a.jpg/under.jpg")
    assert account.unreadable == {
        "empty.jpg": "empty file",
        "text.jpg": "not a JPEG, PNG or GIF",
        "half.jpg": "truncated",
        "folder.jpg": "not a file",
        "pipe.jpg": "not a file",
        "nul\0.jpg": account.unreadable["nul\0.jpg"],
    }
    assert (account.rows, account.used) == (12, 2)


def test_nothing_outside_the_root_is_used(root, tmp_path):
    secret = tmp_path / "secret"
    (root / "link.jpg").symlink_to(secret / "s.jpg")
    (root / "linked").symlink_to(secret)
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    (root / "sibling.jpg").symlink_to(tmp_path / "root_2" / "x.jpg")
    paths = [
        "../secret/s.jpg",
        "sub/../../secret/s.jpg",
        str(secret / "s.jpg"),
        "link.jpg",
        "linked/s.jpg",
        "../gone.jpg",
    ]
    rows, account = admit(root, _table("a.jpg", *paths, "sibling.jpg", "loop.jpg"))
    assert rows["path"].to_list() == ["a.jpg"]
    assert account.left_out == {"outside the data folder": len(paths) + 1}
    assert list(account.unreadable) == ["loop.jpg"]


def test_links_and_dots_inside_the_root_and_a_linked_root_are_fine(root, tmp_path):
    (root / "link.jpg").symlink_to(root / "a.jpg")
    (tmp_path / "alias").symlink_to(root)
    rows, _ = admit(tmp_path / "alias", _table("link.jpg", "sub/../b.jpg", str(root.resolve() / "sub" / "c.jpg")))
    assert rows["file"].to_list() == [str(root.resolve() / name) for name in ("a.jpg", "b.jpg", "sub/c.jpg")]


def test_an_image_on_two_sides_is_used_on_the_first(root):
    rows, account = admit(root, _table("a.jpg", "b.jpg", "a.jpg", "sub/../a.jpg", side=[1, 1, 0, 1]))
    assert rows.index.to_list() == [1, 2]
    assert account.left_out == {"the same image is in another split or fold": 2}
    assert account.duplicates == (("a.jpg", "sub/../a.jpg"),)


def test_equal_size_is_not_equality(root):
    contents = (root / "a.jpg").read_bytes()
    (root / "b.jpg").write_bytes(contents[:-3] + bytes([contents[-3] ^ 1]) + contents[-2:])
    rows, account = admit(root, _table("a.jpg", "b.jpg", "sub/c.jpg", label=[0, 1, 0]))
    assert rows["image"].nunique() == account.used == 3
    assert not account.duplicates


def test_only_files_whose_size_another_has_are_read_whole(root, monkeypatch):
    digested, sha256 = [], storage.sha256
    monkeypatch.setattr(storage, "sha256", lambda path: digested.append(path) or sha256(path))
    (root / "c.jpg").write_bytes((root / "b.jpg").read_bytes())
    (root / "a.jpg").write_bytes((root / "a.jpg").read_bytes() + b"trailer")
    (root / "sub" / "c.jpg").write_bytes((root / "sub" / "c.jpg").read_bytes() + b"longer trailer")
    admit(root, _table("a.jpg", "b.jpg", "c.jpg", "sub/c.jpg"))
    assert {os.path.relpath(path, os.path.realpath(root)) for path in digested} == {"b.jpg", "c.jpg"}


def test_repeats_can_be_kept_and_a_broken_one_is_named_once(root):
    (root / "text.jpg").write_text("no image")
    rows, account = admit(root, _table("a.jpg", "text.jpg", "a.jpg", "text.jpg"), keep_repeats=True)
    assert rows.index.to_list() == [0, 2]
    assert (account.left_out, len(account.unreadable)) == ({"named before": 1}, 1)
    assert not account.duplicates


def test_a_row_left_out_does_not_hide_a_later_one(root):
    rows, account = admit(root, _table("a.jpg", "a.jpg", left_out=["no label", ""]))
    assert rows.index.to_list() == [1]
    assert account.left_out == {"no label": 1}


def test_what_a_camera_appends_is_accepted(root, encode, picture):
    (root / "long.jpg").write_bytes(encode(picture()) + b"trailer")
    rows, _ = admit(root, _table("long.jpg"))
    assert len(rows) == 1


def test_no_image_at_all_says_why(root):
    with pytest.raises(ValueError, match=r"No image under .* is usable. Received:\n2 rows, 0 used\n.*missing files: 2"):
        admit(root, _table("x.jpg", "y.jpg"))
