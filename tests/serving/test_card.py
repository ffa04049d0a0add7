"""The page that travels with every export."""

import json

import pytest

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
    assert "None were given" in bare
    assert "Checks for gradient masking: not run" in bare
    checks = [{"network": "satm/vgg", "check": "noise", "verdict": "pass", "explanation": "a | b"}]
    more = {
        "results": [RESULT, {**RESULT, "fold": None, "one_off_accuracy": None}],
        "checks": checks,
        "label_leaking": ["pgd of satm/resnet"],
        "training": {"run": "trial", "attack": {"name": "pgd"}, "epochs": {}},
    }
    page = card.render({**facts, **more})
    assert "| pgd | 0.1 | itself (white box) | 2 | 200 | 25.0% | 19.5% to 31.4% | 50.0% |\n" in page
    assert "| pgd | 0.1 | itself (white box) |  | 200 | 25.0% | 19.5% to 31.4% |  |\n" in page
    assert "\n| network | check | verdict | explanation |\n| --- | --- | --- | --- |\n" in page
    assert "\n| satm/vgg | noise | pass | a \\| b |\n" in page
    assert "none found" not in page
    assert "better than clean ones): pgd of satm/resnet.\n" in page
    assert "\n0. infant\n1. child\n" in page
    assert "\n- run: trial\n- attack:\n  - name: pgd\n- epochs: none\n" in page
    for heading in ("Intended use", "Limits", "Training", "Verification", "Classes"):
        assert f"\n## {heading}\n" in page
    assert "\n\n\n" not in page


def test_a_card_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        card.write_card(tmp_path, {"name": "x", "accuracy": float("nan")})
