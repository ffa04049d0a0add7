"""The page that travels with every export."""

import json
import re

import pytest
import yaml

from satm_tf.serving import card

RESULT = {
    "attack": "pgd",
    "epsilon": 0.1,
    "attacked_by": "itself (white box)",
    "fold": 2,
    "images": 200,
    "accuracy": 0.25,
    "low": 0.195,
    "high": 0.314,
    "one_off_accuracy": 0.5,
}


def test_the_page_says_what_the_facts_say(exported):
    facts = json.loads((exported.folder / "assets.extra" / "model_card.json").read_text())
    assert (facts["name"], facts["version"], facts["labels"][3]) == ("faces", 1, "Älteste")
    bare = (exported.folder / "assets.extra" / "model_card.md").read_text()
    assert "No figures were given" in bare
    assert yaml.safe_load(bare.split("---\n")[1])["pipeline_tag"] == "image-classification"
    assert "Checks for gradient masking: not run" in bare
    checks = [{"network": "satm/vgg", "check": "noise", "verdict": "masking not detected", "explanation": "a | b"}]
    more = {
        "results": [RESULT, {**RESULT, "fold": None, "one_off_accuracy": None}],
        "checks": checks,
        "label_leaking": ["pgd of satm/resnet"],
        "training": {"run": "trial", "attack": {"name": "pgd"}, "epochs": {}},
    }
    page = card.render({**facts, **more})
    assert "| pgd | 0.1 | itself (white box) | 2 | 200 | 25.0% | 19.5% to 31.4% | 50.0% |\n" in page
    assert "| pgd | 0.1 | itself (white box) |  | 200 | 25.0% | 19.5% to 31.4% |  |\n" in page
    assert "\n| check | verdict | explanation |\n| --- | --- | --- |\n" in page
    assert "\n| noise | masking not detected | a \\| b |\n" in page
    assert "none found" not in page
    assert "better than clean ones): pgd of satm/resnet.\n" in page
    assert "into 4 classes: infant, child" in page
    assert "\n- run: trial\n- attack:\n  - name: pgd\n\n" in page, "what is empty is left out"
    headings = re.findall("^#+ (.*)$", page, re.MULTILINE)
    assert headings[:6] == ["faces, version 1", "How to use it", "What it withstands", "Limits", "Intended use",
                            "Is the defence real?"]  # fmt: skip
    assert {"How it was made", "Training", "Verification"} <= set(headings)
    rung = {"rung": "unseen", "attacker": "unseen models", "who": "anybody", "accuracy": 0.5, "low": 0.4, "high": 0.6}
    rungs = [{**rung, "images": 80, "before": 0.2}, {**rung, "attacker": "queries", "images": 40, "before": None}]
    compared = card.render({**facts, **more, "ladder": rungs})
    assert "| unseen models | anybody | 20.0% | 50.0% | 40.0% to 60.0% | 80 |\n" in compared
    assert "| queries | anybody |  | 50.0% | 40.0% to 60.0% | 40 |\n" in compared
    alone = card.render({**facts, **more, "ladder": rungs[1:]})
    assert "| queries | anybody | 50.0% | 40.0% to 60.0% | 40 |\n" in alone
    for each in (bare, page, compared, alone):
        assert "\n\n\n" not in each


def test_a_card_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        card.write_card(tmp_path, {"name": "x", "accuracy": float("nan")})
