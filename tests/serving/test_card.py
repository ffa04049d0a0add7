import json

import pandas as pd
import pytest
import yaml

from satm_tf.evaluation import wilson_interval
from satm_tf.serving import card

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
    config = {
        "name": "trial",
        "seed": 3,
        "data": {"format": "adience", "fold": 2, "table": None},
        "networks": {"vgg": {"backbone": "compact_vgg"}},
        "schemes": {"satm": {"learns_from": "others"}},
        "attack": {"name": "pgd", "epsilon": 0.1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "environment.json").write_text('{"python": "3.11"}')
    stages = {"stage": ["fine_tune/vgg"] * 3 + ["co_train/satm"] * 2, "epoch": [0, 1, 2, 0, 1]}
    pd.DataFrame(stages).to_csv(tmp_path / "metrics.csv", index=False)
    return tmp_path


def test_a_run_tells_what_attackers_made_of_the_network(run):
    facts = card.from_run(run, "satm", "vgg")
    told = {(row["attack"], row["attacked_by"]): row["accuracy"] for row in facts["results"]}
    assert told == {
        ("clean", "nobody"): 0.75,
        ("pgd", "itself (white box)"): 0.25,
        ("pgd", "resnet (partner)"): 0.95,
        ("pgd", "densenet (holdout)"): 0.6,
    }
    clean = facts["results"][0]
    assert (clean["low"], clean["high"]) == pytest.approx(wilson_interval(150, 200))
    assert (clean["fold"], clean["images"], clean["one_off_accuracy"]) == (2, 200, 0.9)
    assert facts["label_leaking"] == ["pgd of satm/resnet"]
    assert facts["checks"] == card.NOT_RUN
    assert facts["training"]["data"] == {"format": "adience", "fold": 2}
    assert facts["training"]["scheme"] == {"name": "satm", "learns_from": "others"}
    assert facts["training"]["epochs"] == {"fine_tune/vgg": 3, "co_train/satm": 2}


def test_masking_verdicts_of_this_network_are_taken_over(run):
    checks = pd.DataFrame(
        {
            "target": ["satm/vgg", "satm/resnet", "satm/vgg"],
            "check": ["iterative below single step", "noise", "unbounded"],
            "verdict": ["passed", "failed", "failed"],
        }
    )
    checks.to_csv(run / "checks.csv", index=False)
    facts = card.from_run(run, "satm", "vgg")
    assert [row["verdict"] for row in facts["checks"]] == ["passed", "failed"]


def test_a_run_without_an_order_of_classes_or_without_results(run):
    frame = pd.read_csv(run / "results.csv").assign(one_off_accuracy="", fold="")
    frame.to_csv(run / "results.csv", index=False)
    facts = card.from_run(run, "satm", "vgg")
    assert {row["one_off_accuracy"] for row in facts["results"]} == {None}
    json.dumps(facts, allow_nan=False, default=card._plain)
    (run / "results.csv").unlink()
    assert "results" not in card.from_run(run, "satm", "vgg")


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        card.from_run(tmp_path, "satm", "vgg")


def test_the_page_says_what_the_facts_say(exported, run, tmp_path):
    facts = json.loads((exported.folder / "assets.extra" / "model_card.json").read_text())
    assert (facts["name"], facts["version"], facts["labels"][3]) == ("faces", 1, "Älteste")
    bare = (exported.folder / "assets.extra" / "model_card.md").read_text()
    assert "None were given" in bare
    assert "Checks for gradient masking: not run" in bare
    page = card.render({**facts, **card.from_run(run, "satm", "vgg")})
    assert "| pgd | 0.1 | itself (white box) | 2 | 200 | 25.0% | 19.5% to 31.4% | 50.0% |" in page
    assert "none found" not in page
    assert "pgd of satm/resnet." in page
    for heading in ("Intended use", "Limits", "Training", "Verification", "Classes"):
        assert f"\n## {heading}\n" in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1


def test_a_card_holds_no_number_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        card.write_card(tmp_path, {"name": "x", "accuracy": float("nan")})
