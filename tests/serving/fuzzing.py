"""Changed answers of a server, and what must be true of all that a client makes of them."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

from satm_tf.serving import ServingError
from satm_tf.serving.answers import check, from_json, from_lists

GOOD = {
    "probabilities": [[0.25, 0.75], [0.0, 0.0], [1.0, 0.0]],
    "class_id": [1, -1, 0],
    "label": ["b", "", "a"],
    "valid": [True, False, True],
}
LIMIT = 2.0
"""Seconds that one answer may take."""


def fuzz_answers(seed: int, count: int, folder: Path | None = None) -> Counter[str]:
    """Reads `count` answers with some characters changed, dropped or put in; each is refused, or means what it says."""
    draw, outcomes = random.Random(seed), Counter[str]()
    text = json.dumps({"outputs": GOOD})
    for _ in range(count):
        characters = list(text)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(characters))
            put_in = draw.choice(["", '"', "[", "]", "{", ",", "9", "-", "null", "é", "[" * 5000, "1e999"])
            characters[place : place + draw.randrange(3)] = put_in
        changed = "".join(characters)
        began = time.perf_counter()
        try:
            answer = check("serving_default", from_lists(from_json(changed.encode()).get("outputs")), 3)
        except ServingError:
            outcomes["refused"] += 1
        else:
            # What is accepted is what an independent reading of the same text finds.
            plain = json.loads(changed)["outputs"]
            assert {name: value.tolist() for name, value in answer.items()} == {name: plain[name] for name in answer}
            assert {len(value) for value in answer.values()} == {3}
            outcomes["as it says"] += 1
        assert time.perf_counter() - began < LIMIT, changed
    return outcomes
