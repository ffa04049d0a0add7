"""What a run is said to take: counted by hand for networks of one second an image, and shown without writing."""

import dataclasses

import pytest

from satm_tf import train
from satm_tf.experiment import RunFolder, cost
from satm_tf.experiment.config import from_arguments
from satm_tf.experiment.images import Sizes, load_data, look_at_data

FEW = ["--data.num_subjects", "80", "--data.images_per_subject", "1"]


def test_what_is_done_costs_nothing_and_only_the_largest_passing_counts():
    costs = {"a": cost.Cost(10, 60.0, 1e6, 5e6), "b": cost.Cost(20, 120.0, 2e6, 7e6), "c": cost.Cost(1, 9.0, 1e6, 9e6)}
    rows, whole = cost.table(costs, {"a": 1, "b": 2, "c": 0})
    assert whole == cost.Cost(50, 300.0, 5e6, 7e6)
    assert [row.split() for row in rows[1:]] == [
        ["a", "1", "10", "6.000", "1.0", "1"],
        ["b", "2", "20", "6.000", "4.0", "4"],
        ["c", "-", "1", "9.000", "0.0", "0"],
    ]
    assert cost.summary(whole).startswith("About 5 minutes in all on this machine")
    assert cost.summary(whole).endswith("at most 0.01 GB on disk.")


def test_faces_that_are_not_drawn_are_counted_as_they_will_be(tmp_path):
    config = from_arguments([*FEW, "--data.image_size", "32"]).data
    images, expected = look_at_data(config, RunFolder(tmp_path), seed=0)
    assert images.num_classes == 8
    assert list(tmp_path.iterdir()) == []
    drawn = dataclasses.replace(config, root=str(tmp_path / "faces"))
    found = load_data(drawn, RunFolder(tmp_path), seed=0)
    there = Sizes(len(found.train), len(found.validation), len(found.test))
    assert look_at_data(drawn, RunFolder(tmp_path), seed=0)[1] == there
    assert expected == pytest.approx(there, abs=2)
    limited = dataclasses.replace(drawn, limit=20, test_limit=7)
    assert look_at_data(limited, RunFolder(tmp_path), seed=0)[1] == Sizes(20, 2, 7)
    undrawn = dataclasses.replace(limited, root=None)
    assert look_at_data(undrawn, RunFolder(tmp_path), seed=0)[1] == Sizes(20, 2, 7)


def test_a_dry_run_says_what_it_takes_and_writes_nothing(untimed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--dry-run", *FEW]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "quickstart, in runs/quickstart: 58 training, 6 validation and 16 test images of 8 classes"
    )
    assert "compact_vgg: compact_vgg" in printed
    assert "1,000 parameters" in printed
    stages = ["fine_tune/compact_vgg", "co_train/satm", "measure", "check", "export"]
    assert [row.split()[1] for row in printed.splitlines() if row.split()[0] in stages] == ["1"] * 5
    assert "the real time may be half or twice that" in printed
    assert list(tmp_path.iterdir()) == []
    assert train.main(["--dry-run", *FEW, "--data.num_subjects", "39"]) == 1
    assert "num_subjects=39" in capsys.readouterr().err


def test_a_network_is_timed_on_its_own_size():
    described = from_arguments([]).networks["compact_vgg"]
    small = cost.time_network(described, 28, 4, "mixed_bfloat16")
    assert 0 < small.seconds < small.first
    assert small.weights == 221_848  # with the dense layers that 28 x 28 pixels need
