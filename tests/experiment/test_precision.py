import dataclasses
import time

import pytest

from satm_tf.experiment import precision
from satm_tf.experiment.precision import choose_precision
from satm_tf.storage import read_json


@pytest.fixture
def automatic(monkeypatch, config):
    """A run of two networks with "auto", on hardware with bfloat16."""
    monkeypatch.setattr(precision, "resolve_precision", lambda asked: {"auto": "mixed_bfloat16"}.get(asked, asked))
    return dataclasses.replace(config, precision="auto")


def slow_in(monkeypatch, policy):
    """Makes a step in this format take 20 ms, and in every other 5."""

    def step(described, size, batch, its):
        return lambda: time.sleep(0.02 if its == policy else 0.005), 0

    monkeypatch.setattr(precision, "training_step", step)


@pytest.mark.parametrize(("slow", "expected"), [("float32", "mixed_bfloat16"), ("mixed_bfloat16", "float32")])
def test_the_faster_format_is_chosen_printed_and_chosen_again(monkeypatch, capsys, automatic, slow, expected):
    slow_in(monkeypatch, slow)
    assert choose_precision(automatic) == expected
    printed = capsys.readouterr().out
    assert "in float32" in printed
    assert printed.strip().endswith(f"in mixed_bfloat16: {expected}")
    recorded = read_json(automatic.folder.precision)
    assert recorded["chosen"] == expected
    batch = automatic.co_train.batch_size
    # A sleep takes as long as it is told, or longer where the machine is busy.
    assert 0 < recorded["images_per_second"][slow] <= batch / (len(automatic.networks) * 0.02)
    slow_in(monkeypatch, expected)
    assert choose_precision(automatic) == expected
    assert capsys.readouterr().out == ""


def test_half_precision_that_gains_nothing_is_not_chosen(monkeypatch, automatic):
    slow_in(monkeypatch, "none of them")
    monkeypatch.setattr(precision, "_FASTER", 3.0)  # a busy machine is not three times as slow in one format alone
    assert choose_precision(automatic) == "float32"


def test_a_resumed_run_keeps_its_choice_on_other_hardware(monkeypatch, automatic):
    for here, there in (("mixed_bfloat16", "float32"), ("float32", "mixed_bfloat16")):
        monkeypatch.setattr(precision, "resolve_precision", lambda asked, policy=here: policy)
        slow_in(monkeypatch, "float32")
        assert choose_precision(automatic) == here
        monkeypatch.setattr(precision, "resolve_precision", lambda asked, policy=there: policy)
        assert choose_precision(automatic) == here
        automatic.folder.precision.unlink()


def test_what_is_asked_for_or_all_there_is_is_not_measured(monkeypatch, automatic):
    for asked in ("float32", "mixed_bfloat16"):
        assert choose_precision(dataclasses.replace(automatic, precision=asked)) == asked
    monkeypatch.setattr(precision, "resolve_precision", lambda asked: "float32")
    assert choose_precision(automatic) == "float32"
    assert read_json(automatic.folder.precision)["images_per_second"] == {}


def test_a_real_network_is_measured_in_both(monkeypatch, automatic):
    assert choose_precision(automatic) in ("float32", "mixed_bfloat16")
    assert set(read_json(automatic.folder.precision)["images_per_second"]) == {"float32", "mixed_bfloat16"}
