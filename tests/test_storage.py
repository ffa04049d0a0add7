from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys

import pytest

from satm_tf import storage


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "table.csv"
    storage.write_text(path, "first")

    def break_off():
        with storage.atomic_file(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "first"
            raise InterruptedError

    with pytest.raises(InterruptedError):
        break_off()
    assert path.read_text() == "first"
    storage.write_text(path, "second")
    assert path.read_text() == "second"
    assert [each.name for each in path.parent.iterdir()] == ["table.csv"], "nothing is left beside it"


def test_a_file_keeps_its_suffix_while_it_is_written(tmp_path):
    """NumPy and Keras choose the format, or add a suffix, by the name."""
    with storage.atomic_file(tmp_path / "network.keras") as temporary:
        assert temporary.suffix == ".keras"
        temporary.write_text("")


def test_a_file_can_be_read_by_those_who_may_read_files_made_here(tmp_path):
    mask = os.umask(0o027)
    try:
        storage.write_text(tmp_path / "a", "")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results"

    def break_off():
        with storage.atomic_folder(path) as temporary:
            (temporary / "a").write_text("a")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        break_off()
    assert list(tmp_path.iterdir()) == []
    with storage.atomic_folder(path) as temporary:
        (temporary / "a").write_text("a")
        assert not path.exists()
        assert temporary.name.startswith("."), "a server that polls the parent must not see it"
    assert (path / "a").read_text() == "a"


def test_a_folder_that_came_to_exist_meanwhile_is_left_alone(tmp_path):
    path = tmp_path / "results"

    def come_late():
        with storage.atomic_folder(path) as temporary:
            (temporary / "a").write_text("mine")
            path.mkdir()
            (path / "a").write_text("other's")

    with pytest.raises(FileExistsError, match="results"):
        come_late()
    assert (path / "a").read_text() == "other's"
    assert [each.name for each in tmp_path.iterdir()] == ["results"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    with storage.atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("a")
    assert done == [str(temporary), str(tmp_path)], "first the content, then the folder that holds the name"


def test_digests(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "a").write_bytes(b"abc")
    assert storage.sha256(tmp_path / "folder" / "inner" / "a") == hashlib.sha256(b"abc").hexdigest()
    before = storage.sha256(tmp_path / "folder")
    (tmp_path / "folder" / "inner" / "a").rename(tmp_path / "folder" / "inner" / "b")
    renamed = storage.sha256(tmp_path / "folder")
    (tmp_path / "folder" / "inner" / "b").write_bytes(b"abd")
    assert len({before, renamed, storage.sha256(tmp_path / "folder")}) == 3, "names and contents count"
    with pytest.raises(FileNotFoundError):
        storage.sha256(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", "{", "\ufffd"])
def test_damaged_json_is_named(tmp_path, text):
    (tmp_path / "exports.json").write_text(text)
    with pytest.raises(ValueError, match=r"damaged.*exports\.json"):
        storage.read_json(tmp_path / "exports.json")


def test_a_folder_belongs_to_one_configuration(tmp_path):
    storage.claim(tmp_path / "run", {"seed": 0, "networks": ("a", "b")})
    storage.claim(tmp_path / "run", {"seed": 0, "networks": ["a", "b"]})
    with pytest.raises(ValueError, match="other values of seed"):
        storage.claim(tmp_path / "run", {"seed": 1, "networks": ["a", "b"]})
    assert storage.read_config(tmp_path / "run") == {"seed": 0, "networks": ["a", "b"]}
    assert {"python", "keras", "devices"} <= set(storage.read_json(tmp_path / "run" / storage.ENVIRONMENT))


def test_a_field_that_is_null_by_default_may_be_added_later(tmp_path):
    storage.claim(tmp_path, {"schemes": {"a": {"preset": "satm"}}, "epochs": 3})
    storage.claim(tmp_path, {"schemes": {"a": {"preset": "satm", "added": None}}, "epochs": 3})
    with pytest.raises(ValueError, match="other values of schemes"):
        storage.claim(tmp_path, {"schemes": {"a": {"preset": "satm", "added": 1}}, "epochs": 3})
    with pytest.raises(ValueError, match="other values of epochs"):
        storage.claim(tmp_path, {"schemes": {"a": {"preset": "satm"}}, "epochs": None})


@pytest.mark.parametrize("content", [b"", b"- a\n", b"a: [", b"\xff\xfe\x00"])
def test_a_damaged_configuration_is_named(tmp_path, content):
    (tmp_path / storage.CONFIG).write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        storage.check_claim(tmp_path, {"seed": 0})


def test_one_process_at_a_time(tmp_path):
    """The other process takes the lock as `lock` does, without TensorFlow, and dies with it."""
    script = "import fcntl, time; file = open('.lock', 'a'); fcntl.flock(file, fcntl.LOCK_EX); print(1, flush=True); "
    script += "time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="Another process is working in"), storage.lock(tmp_path):
            pass
        other.kill()
    with (
        storage.lock(tmp_path),
        pytest.raises(ValueError, match="Another process is working in"),
        storage.lock(tmp_path),
    ):
        pass


def test_a_damaged_table_is_named(tmp_path):
    path = tmp_path / "history.csv"
    for contents in (b"", b"a,b\n1,2\n1,2,3\n", b"\xff\xfe\x00a", b'a,b\n"1,2\n'):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=r"damaged; delete it and create it again. Received: .*history\.csv"):
            storage.read_csv(path)
    path.write_bytes(b"a,b\n1,2\n")
    assert storage.read_csv(path).to_dict("list") == {"a": [1], "b": [2]}
