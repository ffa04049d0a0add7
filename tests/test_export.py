"""`satm-tf export`, from a run folder and from a file."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from satm_tf import export
from satm_tf.experiment import config

from .serving.conftest import LABELS, build_network


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two networks that nothing has trained, on a folder of noise, with results for one of them."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("run")
    random = np.random.default_rng(0)
    for index in range(60):
        path = folder / "pictures" / LABELS[index % 4] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).numpy())
    data = config.DataConfig(
        format="folder", root=str(folder / "pictures"), image_size=16, fold=None, class_names=LABELS, test_share=0.3
    )
    network = config.NetworkConfig("compact_vgg")
    described = config.Config(
        name="noise", data=data, networks={"a": network, "b": network}, attack={"name": "fgsm", "epsilon": 0.1},
        schemes={"satm": config.SchemeConfig()},
    )  # fmt: skip
    facts = dataclasses.asdict(described)
    del facts["run_dir"]
    (folder / "config.yaml").write_text(yaml.safe_dump(facts))
    networks = folder / "networks" / "co_train" / "satm"
    networks.mkdir(parents=True)
    for seed, name in enumerate("ab"):
        build_network(seed).save(networks / f"{name}.keras")
    row = {"fold": "", "scheme": "satm", "attack": "clean", "epsilon": 0.0, "source": "", "target": "satm/a"}
    results = pd.DataFrame([{**row, "accuracy": 0.75, "one_off_accuracy": "", "images": 16}])
    results.to_csv(folder / "results.csv", index=False)
    return folder


def headings(page):
    return [line for line in page.splitlines() if line.startswith("## ")]


def test_a_network_of_a_run_with_its_card_and_another_format(run, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert", reason="needs the lite extra")
    given = [str(run), "--scheme", "satm", "--networks", "[a]", "--folder", str(tmp_path / "models")]
    code = export.main([*given, "--formats", "[litert_int8]", "--limit", "12", "--queries", "3"])
    assert code == 0, capsys.readouterr().err
    model = tmp_path / "models" / "a"
    assert sorted(path.name for path in model.iterdir()) == ["1", "formats"]
    assert (model / "1" / "assets" / "labels.txt").read_text(encoding="utf-8").split() == LABELS
    card = json.loads((model / "1" / "assets.extra" / "model_card.json").read_text())
    assert card["training"]["run"] == "noise"
    assert [row["accuracy"] for row in card["results"]] == [0.75]
    written = (model / "1" / "assets.extra" / "model_card.md").read_text()
    template = Path(__file__).parents[1] / "exported_models" / "MODEL_CARD_TEMPLATE.md"
    assert headings(template.read_text()) == headings(written)
    comparison = pd.read_csv(model / "formats" / "1" / "comparison.csv", keep_default_na=False)
    assert sorted(path.name for path in (model / "formats" / "1").iterdir()) == [
        "a.litert_int8.tflite",
        "comparison.csv",
    ]
    assert comparison[["format", "attack", "crafted_on"]].to_numpy().tolist() == [
        ["original", "clean", ""],
        ["original", "fgsm", "original"],
        ["original", "square", "original"],
        ["litert_int8", "clean", ""],
        ["litert_int8", "fgsm", "original"],
        ["litert_int8", "square", "original"],
        ["litert_int8", "square", "itself"],
    ]
    assert set(comparison.images) == {12}
    assert (tmp_path / "models" / "models.config").exists()


def test_a_file(run, tmp_path):
    labels = ["--labels", json.dumps(LABELS)]
    file = str(run / "networks" / "co_train" / "satm" / "b.keras")
    assert export.main([file, "--name", "faces", "--version", "3", "--folder", str(tmp_path), *labels]) == 0
    card = json.loads((tmp_path / "faces" / "3" / "assets.extra" / "model_card.json").read_text())
    assert (card["name"], card["version"]) == ("faces", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "Unknown scheme (--scheme)"),
        (["{run}", "--scheme", "stam"], "Did you mean 'satm'"),
        (["{run}", "--scheme", "satm", "--networks", "[c]"], "Unknown network"),
        (["{run}", "--scheme", "satm", "--formats", "[onxx]"], "Did you mean 'onnx'"),
        (["{run}", "--scheme", "satm", "--name", "x"], "models are named by its networks"),
        (["{run}/nowhere"], "with a config.yaml, or a .keras file"),
        (["{run}/networks/co_train/satm/a.keras"], "give --labels"),
        (["{run}/networks/co_train/satm/a.keras", "--labels", "[x]"], "a label for each of 4 classes"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, tmp_path, capsys, arguments, message):
    folder = tmp_path / "models"
    assert export.main([*(argument.format(run=run) for argument in arguments), "--folder", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not folder.exists()
