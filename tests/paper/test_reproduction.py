"""What a request stands for: its runs, stages and cells, each once, and what they will cost."""

import argparse

import pytest

from satm_tf import reproduce
from satm_tf.experiment import cost, work
from satm_tf.experiment.images import Sizes
from satm_tf.paper.reproduction import describe_cost

NETWORKS = ("vgg16_face", "resnet50_face", "resnet50_img")
HOLDOUTS = ("inception_v3", "resnet101_img", "inception_resnet_v2")


def request(*arguments):
    own = argparse.ArgumentParser()
    reproduce._add_options(own)
    asked, rest = own.parse_known_args(arguments)
    return reproduce._request(asked, reproduce._config(asked.scale, list(arguments)), rest)


def test_everything_is_five_folds_of_one_graph(tmp_path):
    everything = request("--all", "--idx", str(tmp_path), "--out", str(tmp_path))
    assert everything.experiments() == ["faces", "digits"]
    assert [each.data.fold for each in everything.repeats("faces")] == [0, 1, 2, 3, 4]
    assert len({each.run_dir for each in everything.repeats("faces")}) == 5
    assert len({each.data.root for each in everything.repeats("faces")}) == 1, "the faces are drawn once"
    stages = everything.stages("faces")
    assert len(stages) == len(set(stages)) == 6 + len(everything.configs["faces"].schemes)
    assert len(everything.repeats("digits")) == 1
    # Table 6 needs the other pair, and no ensemble.
    sixth = request("--table", "6", "--printed-only", "--readings", "true").stages("faces")
    assert [str(stage) for stage in sixth] == [
        *(f"fine_tune/{name}" for name in (*NETWORKS, *HOLDOUTS[1:])),
        "co_train/satm_true",
        "co_train/satm_with_resnet50_img_true",
    ]


def test_the_cost_counts_gradients(tmp_path, monkeypatch):
    """Of networks of one second an image: fine-tuning takes one, SATM's pair 2 (clean + twin + 2/3), PGD-5's more."""
    monkeypatch.setattr(cost, "time_network", lambda *arguments: cost.Network(1.0, 0.0, 1000))
    asked = request("--table", "2", "--readings", "true", "--out", str(tmp_path / "out"), "--data.num_subjects=40")
    found = Sizes(train=100, validation=0, test=10)
    config = asked.configs["faces"]
    costs = work.count(config, asked.stages("faces"), asked.cells("faces"), found, cost.timed(config))
    assert costs["fine_tune/vgg16_face"].seconds == pytest.approx(8 * 100)
    assert costs["co_train/clean"].seconds == pytest.approx(3 * 100 * 2)
    assert costs["co_train/satm_true"].seconds == pytest.approx(3 * 100 * 2 * (2 + 2 / 3))
    assert costs["co_train/ensemble_true"].seconds == pytest.approx(costs["co_train/satm_true"].seconds)
    assert costs["co_train/pgd"].seconds == pytest.approx(8 * 100 * 2 * (2 + 5 * 2 / 3))
    # Six trainings of two networks: each crafts and is asked once.
    assert costs["measure"].seconds == pytest.approx(10 * 12 * (2 / 3 + 1 / 3))
    assert costs["co_train/pgd"].bytes == 2 * 4 * 1000
    assert "2 runs" not in describe_cost(asked)
    assert not (tmp_path / "out").exists(), "an estimate writes nothing"
