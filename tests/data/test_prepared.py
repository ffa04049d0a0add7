import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from satm_tf.data import Examples, adience, batches, folder, prepared
from satm_tf.data.prepared import attach, pack
from satm_tf.storage import lock
from tests.data.conftest import numbered


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(prepared, "SHARD_SIZE", 8)


@pytest.fixture
def data(plain_adience):
    return adience.load(plain_adience)


@pytest.fixture(scope="module")
def packed_once(shared_adience, tmp_path_factory):
    """The 30 images of `shared_adience` at 8 x 8 pixels in four shards; only to be read."""
    output = tmp_path_factory.mktemp("packed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "SHARD_SIZE", 8)
        pack(_splits(adience.load(shared_adience)), output, root=shared_adience, image_size=8)
    return output


@pytest.fixture
def packed(packed_once, plain_adience, small_shards, tmp_path):
    """A copy of `packed_once`, to be changed; copies of the images have their times too."""
    return Path(shutil.copytree(packed_once, tmp_path / "out"))


def _splits(data):
    return (data.train, data.validation, data.test)


def _state(output: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.glob("images-*")}


@pytest.mark.usefixtures("small_shards")
def test_prepared_batches_are_the_straight_ones_to_the_bit(data, plain_adience, tmp_path, noise):
    account = pack(_splits(data), tmp_path / "out", root=plain_adience, image_size=(20, 24))
    assert (account.rows, account.used) == (30, 30)
    assert len(list((tmp_path / "out").glob("*.npy"))) == 4
    fast = attach(data, tmp_path / "out", root=plain_adience)
    options = {"image_size": (20, 24), "batch_size": 4, "shuffle": True}
    for split, augmentation in (("train", noise), ("test", None)):
        one, other = (batches(getattr(of, split), **options, augmentation=augmentation) for of in (data, fast))
        for _ in range(2):
            for straight, packed in zip(one, other, strict=True):
                np.testing.assert_array_equal(straight[0], packed[0])
                np.testing.assert_array_equal(straight[1], packed[1])


def test_one_folder_serves_every_fold_and_target(shared_adience, packed_once):
    for fold in range(5):
        for target in ("age", "gender"):
            data = adience.load(shared_adience, fold=fold, target=target)
            fast = attach(data, packed_once, root=shared_adience)
            assert fast.test.images.shape == (6, 8, 8, 3)
            np.testing.assert_array_equal(fast.test.labels, data.test.labels)
            np.testing.assert_array_equal(fast.test.subjects, data.test.subjects)


@pytest.mark.usefixtures("small_shards")
def test_again_changes_nothing_and_more_files_only_add(data, plain_adience, tmp_path):
    output = tmp_path / "out"
    pack([data.train], output, root=plain_adience, image_size=8)
    first = _state(output)
    pack([data.train, data.train], output, root=plain_adience, image_size=8)
    assert _state(output) == first
    account = pack(_splits(data), output, root=plain_adience, image_size=8)
    assert account.used == 30
    assert first.items() < _state(output).items()
    attach(data, output, root=plain_adience)


def test_harmed_shards_are_found_and_made_anew(data, plain_adience, packed):
    whole = {path: path.read_bytes() for path in sorted(packed.glob("images-*"))}
    flipped, shortened, removed, unlisted = sorted(packed.glob("*.npy"))
    flipped.write_bytes(whole[flipped][:199] + bytes([whole[flipped][199] ^ 1]) + whole[flipped][200:])
    attach(data, packed, root=plain_adience)  # it does not compare checksums
    harms = {
        shortened: lambda: shortened.write_bytes(whole[shortened][:-1]),
        removed: removed.unlink,
        unlisted.with_suffix(".json"): unlisted.with_suffix(".json").unlink,
    }
    for path, harm in harms.items():
        harm()
        with pytest.raises(
            ValueError, match=r"\d of .* files have changed or are not packed in .* run satm_tf\.prepare again"
        ):
            attach(data, packed, root=plain_adience)
        path.write_bytes(whole[path])
    for harm in harms.values():
        harm()
    pack(_splits(data), packed, root=plain_adience, image_size=8)
    assert {path: path.read_bytes() for path in sorted(packed.glob("images-*"))} == whole
    attach(data, packed, root=plain_adience)


def test_a_changed_file_is_packed_anew(data, plain_adience, packed, write_image):
    write_image(Path(data.test.paths[0]), seed=99)
    with pytest.raises(
        ValueError, match=r"1 of 6 files have changed or are not packed in .* run satm_tf\.prepare again"
    ):
        attach(data, packed, root=plain_adience)
    pack(_splits(data), packed, root=plain_adience, image_size=8)
    ((straight, _),) = batches(data.test, image_size=8, batch_size=6)
    ((fast, _),) = batches(attach(data, packed, root=plain_adience).test, image_size=8, batch_size=6)
    np.testing.assert_array_equal(straight, fast)


def _spoil(path: str, encode, picture) -> None:
    """A JPEG with a whole header and a whole end that does not decode in between."""
    contents = encode(picture(1, 64, 64))
    contents = contents[:-900] + b"\xff\xcd" + bytes(40) + b"\xff\xd9"
    Path(path).write_bytes(numbered(contents, zlib.crc32(path.encode())))


@pytest.mark.usefixtures("small_shards")
def test_what_does_not_decode_is_counted(plain_adience, tmp_path, encode, picture):
    for path in adience.load(plain_adience).train.paths[:9]:
        _spoil(path, encode, picture)
    data = adience.load(plain_adience)
    assert data.account.used == 30  # a look at the header and the end does not show it
    account = pack(_splits(data), tmp_path / "out", root=plain_adience, image_size=8)
    assert (account.used, len(account.unreadable)) == (21, 9)
    fast = attach(data, tmp_path / "out", root=plain_adience)
    assert (fast.account.used, len(fast.account.unreadable), fast.account.rows) == (21, 9, 30)
    assert sum(map(len, _splits(fast))) == 21
    assert set(fast.account.unreadable.values()) == {"does not decode"}
    assert len(list(batches(fast.train, image_size=8, batch_size=4))) > 0
    before = _state(tmp_path / "out")
    pack(_splits(data), tmp_path / "out", root=plain_adience, image_size=8)
    assert _state(tmp_path / "out") == before


def test_numpy_alone_reads_them_and_more_shards_than_may_be_open(shared_adience, packed_once, monkeypatch):
    train = adience.load(shared_adience).train
    ((straight, _),) = batches(train, image_size=8, batch_size=len(train))
    pixels = np.round(straight * 255)
    by_name = {}
    for shard in packed_once.glob("*.npy"):
        names = [path for path, _, _ in json.loads(shard.with_suffix(".json").read_text())["files"]]
        by_name.update(zip(names, np.load(shard), strict=True))
    assert len(by_name) == 30
    np.testing.assert_array_equal([by_name[os.path.relpath(path, shared_adience)] for path in train.paths], pixels)
    monkeypatch.setattr(prepared, "_OPEN_SHARDS", 2)
    images = attach(adience.load(shared_adience), packed_once, root=shared_adience).train.images
    np.testing.assert_array_equal(images[np.arange(len(train))], pixels)
    assert images._mapped.cache_info().currsize == 2


def test_orientation_and_crop_are_packed_in(tmp_path, encode, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "ab":
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(5):
            contents = encode(picture(number + 5 * "ab".index(name), 30, 50), exif=exif if number % 2 else Image.Exif())
            (tmp_path / "in" / name / f"{number}.jpg").write_bytes(contents)
    data = folder.load(tmp_path / "in", test_share=0.4)
    pack(_splits(data), tmp_path / "out", root=tmp_path / "in", image_size=16, crop=0.8)
    fast = attach(data, tmp_path / "out", root=tmp_path / "in")
    ((straight, _),) = batches(data.test, image_size=16, batch_size=4, crop=0.8)
    ((packed, _),) = batches(fast.test, image_size=16, batch_size=4)
    np.testing.assert_array_equal(straight, packed)


def test_the_images_may_move_with_their_root(plain_adience, packed_once, tmp_path):
    moved = plain_adience.rename(tmp_path / "elsewhere")
    assert attach(adience.load(moved), packed_once, root=moved).account.used == 30


def test_a_kill_leaves_whole_shards_and_the_rest_is_made(tmp_path, write_image):
    root, output = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b"):
        for number in range(60):
            write_image(root / name / f"{number}.jpg", number, 300, 300)
    script = (
        "import time; from satm_tf.data import folder, prepared; prepared.SHARD_SIZE = 10\n"
        "write = prepared._write_shard\n"
        "prepared._write_shard = lambda *given: (write(*given), time.sleep(0.2))\n"
        f"data = folder.load({str(root)!r})\n"
        f"prepared.pack([data.train, data.validation, data.test], {str(output)!r}, root={str(root)!r}, image_size=32)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(output.glob("images-*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (output / ".images-00099.npy-x.npy").write_bytes(b"half of a shard")
    done = _state(output)
    assert 3 <= len(list(output.glob("images-*.json"))) < 12, process.stderr.read().decode()[-2000:]
    data = folder.load(root)
    with pytest.raises(ValueError, match=r"run satm_tf\.prepare again"):
        attach(data, output, root=root)
    pack(_splits(data), output, root=root, image_size=32)
    whole = {name: state for name, state in done.items() if (output / name).with_suffix(".json").name in done}
    assert whole.items() <= _state(output).items()
    assert attach(data, output, root=root).account.used == 120
    assert not list(output.glob(".images-*"))


def test_refuses(data, plain_adience, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"create them with python -m satm_tf.prepare. Received: .*out"):
        attach(data, output, root=plain_adience)
    pack([data.test], output, root=plain_adience, image_size=8)
    with pytest.raises(ValueError, match=r"prepared with other options.*\[8, 8\].* Received: .*\[9, 9\]"):
        pack([data.test], output, root=plain_adience, image_size=9)
    with pytest.raises(ValueError, match="below the root"):
        pack([data.test], output, root=tmp_path / "other", image_size=8)
    with lock(output), pytest.raises(ValueError, match="Another process is working"):
        pack([data.test], output, root=plain_adience, image_size=8)
    decoded = Examples(labels=[0], images=np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="Only image files can be prepared"):
        pack([decoded], output, root=plain_adience, image_size=8)


def test_refuses_what_an_earlier_version_prepared(data, plain_adience, tmp_path):
    (tmp_path / "prepared.json").write_text(json.dumps({"image_size": [8, 8], "crop": None}))
    (tmp_path / "images-00000.tfrecord").touch()
    for use in (
        lambda: pack([data.test], tmp_path, root=plain_adience, image_size=8),
        lambda: attach(data, tmp_path, root=plain_adience),
    ):
        with pytest.raises(
            ValueError, match=r"was prepared by an earlier version.*delete it and run satm_tf\.prepare again"
        ):
            use()
