"""Short, seeded runs of the fuzzers; `benchmarks/fuzz.py` has the long ones."""

from tests.data import fuzzing


def test_damaged_images(tmp_path):
    outcomes = fuzzing.fuzz_images(0, 400, tmp_path)
    assert sum(outcomes.values()) == 400
    assert {"read, served", "refused, not served", "does not decode, not served"} <= set(outcomes)


def test_damaged_fold_files(tmp_path):
    outcomes = fuzzing.fuzz_fold_files(0, 150, tmp_path)
    assert sum(outcomes.values()) == 150
    assert not [outcome for outcome in outcomes if outcome.startswith("a message without")]
    assert {"refused, the file is named", "read as it is now"} <= set(outcomes)
