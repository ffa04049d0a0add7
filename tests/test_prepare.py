import json

import numpy as np
import pytest
from PIL import Image

from satm_tf import prepare
from satm_tf.data import formats, prepared


@pytest.fixture
def classes(tmp_path):
    """Two classes of five images in sub-folders, a table and a numbering of them, and other files beside the images."""
    for seed, name in enumerate("ab"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng((seed, number)).integers(0, 256, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "classes" / name / f"{number}.png")
    rows = "\n".join(f"{name}/{number}.png,{name}" for name in "ab" for number in range(5))
    (tmp_path / "table.csv").write_text(f"path,label\n{rows}\n")
    (tmp_path / "index.json").write_text(json.dumps({"0": ["a", "a"], "1": ["b", "b"]}))
    return tmp_path / "classes"


@pytest.mark.parametrize(
    ("format", "options", "crop"),
    [
        ("folder", {"test_share": 0.5}, None),
        ("folder", {}, 0.5),
        ("table", {"table": "table.csv"}, None),
        ("imagenet", {"synsets": "index.json"}, None),
        ("images", {}, None),
    ],
)
def test_every_format_of_files(classes, tmp_path, monkeypatch, format, options, crop):
    monkeypatch.chdir(tmp_path)
    command = ["--format", format, "--root", "classes", "--output", "out", "--image_size", "8"]
    command += ["--data", json.dumps(options)] if options else []
    assert prepare.main([*command, "--crop", str(crop)] if crop else command) == 0
    kind = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert kind == {"image_size": [8, 8], "crop": 0.875 if format == "imagenet" else crop, "shards": "npy"}
    data = prepared.attach(formats.load(format, classes, **options), "out", root="classes")
    assert sum(len(split) for split in (data.train, data.validation, data.test)) == 10


def test_adience_is_packed_for_both_targets_and_all_folds(tmp_path, capsys):
    root, output = tmp_path / "faces", tmp_path / "out"
    formats.load("synthetic_faces", root, num_subjects=40, images_per_subject=1)
    # One without an age and one without a gender: what only one of the targets can use is packed too.
    table = root / "fold_0_data.txt"
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    rows[1][3], rows[2][4] = "None", "u"
    table.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    assert prepare.main(["--format", "adience", "--root", str(root), "--output", str(output), "--image_size", "8"]) == 0
    printed = capsys.readouterr().out
    assert (printed.count("40 rows, 39 used"), printed.count("40 rows, 40 used")) == (2, 1)  # age, gender; the files
    for fold, target in ((0, "age"), (0, "gender"), (3, "age")):
        data = prepared.attach(formats.load("adience", root, fold=fold, target=target), output, root=root)
        assert data.train.images.shape[1:] == (8, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "adienc"], "Did you mean 'adience'?"),
        (["--format", "idx"], "The format 'idx' has no image files to pack"),
        (["--format", "table"], "needs `table`, the CSV file. Received: none"),
        (["--format", "folder", "--data", '{"orderd": true}'], "Did you mean 'ordered'?"),
        (["--format", "folder", "--root", "nowhere"], "The folder of the images does not exist. Received: nowhere"),
    ],
)
def test_refuses(classes, tmp_path, capsys, arguments, message):
    output = tmp_path / "out"
    assert prepare.main(["--root", str(classes), "--output", str(output), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_what_is_needed_is_asked_for(tmp_path):
    with pytest.raises(SystemExit):
        prepare.main(["--format", "folder", "--root", str(tmp_path)])
