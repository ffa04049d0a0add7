"""What a run folder says of a network, for its model card."""

import numpy as np
import pandas as pd
import pytest
import yaml

from satm_tf.evaluation import Predictions, wilson_interval
from satm_tf.experiment.card import facts_from_run
from satm_tf.serving import card
from satm_tf.storage import LAYOUT, write_json

BARE = {"name": "x", "version": 1, "labels": ["a", "b"], "intended_use": "none", "limits": []}
RESULTS = [
    ("clean", 0.0, "", "satm/vgg", 0.75, 0.9, 200),
    ("pgd", 0.1, "satm/vgg", "satm/vgg", 0.25, 0.5, 200),
    ("pgd", 0.1, "satm/resnet", "satm/vgg", 0.95, 0.97, 200),
    ("pgd", 0.1, "undefended/resnet", "satm/vgg", 0.7, 0.8, 200),
    ("pgd", 0.1, "holdout/densenet", "satm/vgg", 0.6, 0.8, 200),
    ("clean", 0.0, "", "satm/resnet", 0.5, 0.6, 200),
]


@pytest.fixture
def run(tmp_path):
    """The tables of a run of two networks, on fold 2."""
    columns = ["attack", "epsilon", "source", "target", "accuracy", "one_off_accuracy", "images"]
    frame = pd.DataFrame(RESULTS, columns=columns)
    frame.insert(0, "fold", 2)
    frame.insert(1, "scheme", "satm")
    frame.to_csv(tmp_path / "results.csv", index=False)
    labels = np.zeros(200, np.int32)
    predicted = np.array([np.arange(200) >= round(200 * row[4]) for row in RESULTS]).astype(int)
    cells = frame[["attack", "epsilon", "source", "target"]]
    Predictions(cells, predicted, labels, 2).save(tmp_path / "predictions.npz")
    config = {
        "name": "trial",
        "seed": 3,
        "data": {"format": "adience", "fold": 2, "table": None},
        "networks": {"vgg": {"backbone": "compact_vgg"}},
        "schemes": {"satm": {"learns_from": "others"}},
        "attack": {"name": "pgd", "epsilon": 0.1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(tmp_path / "environment.json", {"python": "3.11", "layout": LAYOUT})
    stages = {"stage": ["fine_tune/vgg"] * 3 + ["co_train/satm"] * 2, "epoch": [0, 1, 2, 0, 1]}
    pd.DataFrame(stages).to_csv(tmp_path / "metrics.csv", index=False)
    return tmp_path


def test_the_accuracy_under_each_attacker(run):
    facts = facts_from_run(run, "satm", "vgg")
    accuracies = {(row["attack"], row["attacked_by"]): row["accuracy"] for row in facts["results"]}
    assert accuracies == {
        ("clean", "none"): 0.75,
        ("pgd", "itself (white box)"): 0.25,
        ("pgd", "resnet (partner)"): 0.95,
        ("pgd", "densenet (holdout)"): 0.6,
    }
    clean = facts["results"][0]
    assert (clean["low"], clean["high"]) == pytest.approx(wilson_interval(150, 200))
    assert (clean["fold"], clean["images"], clean["one_off_accuracy"]) == (2, 200, 0.9)
    rungs = {row["rung"]: (row["before"], row["accuracy"], row["images"]) for row in facts["ladder"]}
    assert rungs == {
        "clean": (None, 0.75, 200),
        "unseen": (None, 0.6, 200),
        "worst": (None, 0.6, 200),
        "white_box": (None, 0.25, 200),
    }
    assert facts["label_leaking"] == ["pgd of satm/resnet"]
    assert not facts["at_chance"]
    assert facts_from_run(run, "satm", "resnet")["at_chance"], "half of two classes"
    assert facts["checks"] == card.NOT_RUN
    assert facts["training"]["data"] == {"format": "adience", "fold": 2}
    assert facts["training"]["scheme"] == {"name": "satm", "learns_from": "others"}
    assert facts["training"]["epochs"] == {"fine_tune/vgg": 3, "co_train/satm": 2}


def test_the_masking_verdicts_are_those_of_this_network(run):
    checks = pd.DataFrame(
        {
            "network": ["satm/vgg", "satm/resnet", "satm/vgg"],
            "check": ["iterative below single step", "noise", "unbounded"],
            "verdict": ["passed", "failed", "failed"],
        }
    )
    checks.to_csv(run / "checks.csv", index=False)
    facts = facts_from_run(run, "satm", "vgg")
    assert [row["verdict"] for row in facts["checks"]] == ["passed", "failed"]


def test_a_run_without_an_order_of_classes_or_without_results(run, tmp_path):
    frame = pd.read_csv(run / "results.csv").assign(one_off_accuracy="", fold="")
    frame.to_csv(run / "results.csv", index=False)
    facts = facts_from_run(run, "satm", "vgg")
    assert {row["one_off_accuracy"] for row in facts["results"]} == {None}
    assert {row["fold"] for row in facts["results"]} == {None}
    card.write_card(tmp_path / "card", {**BARE, **facts})
    for name in ("results.csv", "predictions.npz"):
        (run / name).unlink()
    assert set(facts_from_run(run, "satm", "vgg")) == {"training", "checks"}


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        facts_from_run(tmp_path, "satm", "vgg")
