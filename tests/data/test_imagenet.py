import json

import numpy as np
import pytest
import tensorflow as tf

from satm_tf.data import imagenet

SYNSETS = {"n01": "tench", "n02": "goldfish", "n03": "shark"}


@pytest.fixture
def root(tmp_path, write_image):
    for synset in SYNSETS:
        for image in range(10):
            write_image(tmp_path / "val" / synset / f"ILSVRC2012_val_{synset}{image}.JPEG", image)
    return tmp_path / "val"


@pytest.fixture(params=["json", "numbers", "order"])
def synsets(request, tmp_path):
    path = tmp_path / ("index.json" if request.param == "json" else "index.txt")
    text = {
        "json": json.dumps({str(number): item for number, item in enumerate(SYNSETS.items())}),
        "numbers": "n03 2\nn01 0\nn02 1\n",
        "order": "\n".join(f"{synset} {name}, kind of fish" for synset, name in SYNSETS.items()),
    }
    path.write_text(text[request.param])
    return path


def test_load(root, synsets):
    data = imagenet.load(root, synsets=synsets, count=12, seed=1)
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (0, 0, 12, 3)
    assert data.account.left_out == {"not chosen": 18}
    for path, label in zip(data.test.paths, data.test.labels, strict=True):
        assert f"/n0{label + 1}/" in path
    assert data.class_names[0].startswith(("tench", "n01"))
    again = imagenet.load(root, synsets=synsets, count=12, seed=1)
    assert data.test.paths.tolist() == again.test.paths.tolist()
    assert data.test.paths.tolist() != imagenet.load(root, synsets=synsets, count=12, seed=2).test.paths.tolist()


def test_only_the_chosen_are_opened(root, synsets):
    for path in root.glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="unreadable files: 12"):
        imagenet.load(root, synsets=synsets, count=12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01 0\nn02 1\n", "Unknown synset folder"),
        ("n01 0\nn02 2\n", "from 0 on, without a gap"),
        ("", "without a gap"),
    ],
)
def test_refuses(root, tmp_path, text, message):
    (tmp_path / "index.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        imagenet.load(root, synsets=tmp_path / "index.txt")


def test_top_errors():
    # The right class is the best, second, third and last guess of four.
    logits = np.array([[4, 3, 2, 1, 0], [3, 4, 2, 1, 0], [2, 3, 4, 1, 0], [-9, 3, 2, 1, 0]], np.float32)
    dataset = tf.data.Dataset.from_tensor_slices((logits, np.zeros(4, np.int32))).batch(3)
    errors = imagenet.top_errors(lambda images: images, dataset, ks=(1, 2, 3, 5))
    assert errors == {1: 0.75, 2: 0.5, 3: 0.25, 5: 0.0}


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("index.txt", b"n01 0\nn02\xe9 1\n", "save it as UTF-8"),
        ("index.json", b'{"0": ["n01", "a"], "1": ["n02"', "is damaged, or does not number synsets"),
        ("index.json", b'["n01", "n02"]', "is damaged, or does not number synsets"),
    ],
)
def test_a_damaged_numbering_is_named(root, tmp_path, name, contents, message):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message) as error:
        imagenet.load(root, synsets=tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
