"""How much work the parts of a run are: counted by hand for networks that take a unit an image."""

import dataclasses

import pytest

from satm_tf import train
from satm_tf.experiment import Stage, work
from satm_tf.experiment.config import NetworkConfig, QueriesConfig, from_arguments
from satm_tf.experiment.images import Sizes


def a_second_an_image(name):
    return work.Network(1.0, 0.0, 1000)


def test_checks_are_counted_by_gradients_and_queries():
    """One scheme's two networks, 10 steps, 100 queries, 5 images; ten gradients a step, half of the queries."""
    config = from_arguments(["--checks.limit", "5"])
    found = work.count_checks(config, Sizes(100, 10, 40), a_second_an_image)
    assert found.seconds == pytest.approx(2 * 5 * (2 / 3 * 10 * 10 + 100 / 2 / 3))
    unchecked = dataclasses.replace(config, checks=dataclasses.replace(config.checks, schemes=[]))
    assert work.count_checks(unchecked, Sizes(100, 10, 40)) == work.NOTHING


def test_only_networks_that_are_exported_count(tmp_path):
    config = from_arguments([])
    one = dataclasses.replace(config, export=dataclasses.replace(config.export, networks=["compact_vgg"]))
    assert work.count_export(config).seconds == 2 * work.count_export(one).seconds > 0


def test_the_parts_of_a_run_are_its_stages_and_what_comes_after_them(config):
    """Of networks that are all alike, with 8 overheads of 150 images for each that a stage trains.

    A fine-tuning of 2 epochs learns from 108 images, and looks at 12 without a step back. In an epoch of SATM each of
    two networks learns from clean images and from adversarial ones of the other, which take two thirds of a pass.
    """
    found = Sizes(108, 12, 60)
    counted = work.parts(config, found)
    stages = [str(stage) for stage in config.stages()]
    assert list(counted) == [*stages, "measure", "check", "export"]
    assert counted["fine_tune/a"].seconds == pytest.approx(2 * (108 + 6) + 8 * 150)
    assert counted["co_train/satm"].seconds == pytest.approx((108 + 6) * 2 * (2 + 2 / 3) + 2 * 8 * 150)
    assert counted["co_train/ensemble"] == counted["co_train/satm"]
    asked = dataclasses.replace(config, queries=QueriesConfig(budgets=[50], limit=10))
    more = work.parts(asked, found)["measure"].seconds - counted["measure"].seconds
    assert more == pytest.approx(4 * 50 * 10 / 3), "four defended networks, half of two searches of 50 queries"
    given = dataclasses.replace(config, networks={**config.networks, "a": NetworkConfig(model="mine.keras")})
    assert work.parts(given, found)["fine_tune/a"].seconds == 8 * 150, "a model is loaded and saved alone"


def test_what_is_in_the_folder_is_finished(config):
    assert work.finished(config) == set()
    config.folder.networks(config.stages()[1]).mkdir(parents=True)
    config.folder.checks.touch()
    assert work.finished(config) == {"fine_tune/b", "check"}


def test_what_is_crafted_once_is_counted_once(tmp_path, untimed, capsys):
    """PGD-10 of two sources for two networks: every epoch, or two copies of what they train on and one to validate."""
    few = ["--data.num_subjects", "80", "--data.images_per_subject", "1"]
    arguments = [
        *("--run_dir", str(tmp_path / "run"), *few, "--co_train.epochs", "3"),
        *("--schemes.pubdef.preset", "pubdef"),
    ]
    config, found, stage = from_arguments(arguments), Sizes(100, 10, 40), Stage("co_train", "pubdef")
    once = from_arguments([*arguments, "--schemes.pubdef.crafted_once", "2"])
    (afresh, crafted) = (work.count(each, [stage], [], found, a_second_an_image)[str(stage)] for each in (config, once))
    seen, crafting = 3 * (100 + 10 / 2), 2 / 3 * 10
    assert afresh.seconds == pytest.approx(seen * (2 + 2 * (1 + crafting)))
    assert crafted.seconds == pytest.approx(seen * (2 + 2) + (2 * 100 + 10) * 2 * crafting)
    size = once.data.image_size
    assert crafted.passing - afresh.passing == work.crafted_bytes(once, "pubdef", found)
    assert work.crafted_bytes(once, "pubdef", found) == 2 * (2 * 100 + 10) * size * size * 3
    assert work.crafted_bytes(config, "pubdef", found) == 0
    assert train.main(["--dry-run", *arguments, "--schemes.pubdef.crafted_once", "2"]) == 0
    assert "pubdef: the examples that are crafted once take at most 1.7 MB" in capsys.readouterr().out
