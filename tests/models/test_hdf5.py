"""HDF5 files that would hold libhdf5 up; other damage is tested with what loads the weights, in test_weights.py."""

import struct

import h5py
import pytest

from satm_tf.models.hdf5 import open_weights
from tests.fuzzing import Outcomes
from tests.models.fuzzing import small_model


def test_texts_are_read_from_the_layouts_of_keras_2_and_3(tmp_path):
    _, files, _ = small_model(tmp_path)
    for file in files:
        with open_weights(file) as opened:
            assert len(opened) >= 1
    assert b"GCOL" in files[1].read_bytes()


@pytest.mark.parametrize("size", [0, 2**64 - 16, 2**40], ids=["nothing", "backwards", "beyond"])
def test_a_heap_that_can_be_walked_in_for_ever_is_refused(tmp_path, size):
    """An object that is free and takes no room is where libhdf5 2.0 stays."""
    _, files, _ = small_model(tmp_path)
    contents = bytearray(files[1].read_bytes())
    first = contents.index(b"GCOL") + 16
    contents[first : first + 16] = struct.pack("<HHIQ", 0, 0, 0, size)
    files[1].write_bytes(contents)
    with (
        Outcomes().timed(2, "libhdf5 does not come back"),
        pytest.raises(ValueError, match=rf"old\.h5 cannot be read: it is damaged.*texts is damaged at byte {first}"),
        open_weights(files[1]) as file,
    ):
        file["a"].attrs["weight_names"]


@pytest.mark.parametrize(
    ("start", "reason"), [(b"", "too short"), (b"\x89HDF\r\n\x1a\r" + bytes(99), "does not start")]
)
def test_what_is_no_hdf5(tmp_path, start, reason):
    (tmp_path / "a.h5").write_bytes(start)
    with (
        pytest.raises(ValueError, match=rf"a\.h5 cannot be read: it is damaged.*{reason}"),
        open_weights(tmp_path / "a.h5"),
    ):
        pass


def test_a_text_longer_than_the_file_is_refused_before_its_memory_is_taken(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["a", "conv"]
    with open_weights(path) as file:
        assert list(file.attrs["layer_names"]) == ["a", "conv"]
    contents = bytearray(path.read_bytes())
    heap = struct.pack("<Q", contents.index(b"GCOL"))
    length = contents.rindex(heap) - 4
    assert contents[length : length + 4] == struct.pack("<I", len("conv"))
    contents[length : length + 4] = struct.pack("<I", 2**31)
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="a text claims 2,147,483,648 bytes, of a file of"), open_weights(path):
        pass


def test_a_name_that_is_not_in_utf_8_is_damage(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs["namés"] = ["a"]
    path.write_bytes(path.read_bytes().replace("namés".encode(), b"nam\xc3\xffs"))
    with pytest.raises(ValueError, match=r"a\.h5 cannot be read: it is damaged"), open_weights(path):
        pass
