"""An attacker's models: what a configuration says of them, how they are trained, and where they stand in results."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from satm_tf import data, experiment
from satm_tf.evaluation import Predictions, ladder_table
from satm_tf.experiment import config as configuration
from satm_tf.experiment.cost import describe
from satm_tf.experiment.images import divide, load_data
from satm_tf.experiment.run_folder import Stage
from satm_tf.experiment.surrogates import SurrogateConfig

NETWORK = configuration.NetworkConfig("tiny_for_experiments")
GROUPS = {
    "start": SurrogateConfig("start", start="same"),
    "public": SurrogateConfig("public_weights", {"a": NETWORK}, images="share", seed=5),
    "defended": SurrogateConfig("defended", scheme={"preset": "pgd", "attack": {"name": "pgd", "steps": 2}}),
    "readers": SurrogateConfig("same_scheme", {"d": NETWORK, "e": NETWORK}, "same", ["satm"], "share"),
}

TWIN = SurrogateConfig("twin", {"a": NETWORK, "b": NETWORK}, "same", against=["ensemble"], seed=6)


@pytest.fixture
def with_surrogates(config):
    """The tiny experiment without checks and export, and with an attacker on every rung."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, surrogate_share=0.25),
        surrogates=GROUPS,
        fine_tune=dataclasses.replace(config.fine_tune, epochs=1),
        evaluation_attacks={"r+fgsm": {"name": "fgsm", "epsilon": 0.2}},
        checks=configuration.ChecksConfig(schemes=[]),
        export=configuration.ExportConfig(),
    )


@pytest.mark.usefixtures("without_pictures", "untimed")
def test_a_run_trains_its_surrogates_and_puts_them_on_their_rungs(with_surrogates, capsys):
    config = with_surrogates
    trained = [str(stage) for stage in config.stages()[5:]]
    assert trained == [
        "fine_tune/public/a",
        "fine_tune/readers/d",
        "fine_tune/readers/e",
        "co_train/defended",
        "co_train/readers.satm",
    ]
    dry = describe(config)
    assert all(stage in dry for stage in trained), "the dry run names every stage"
    results = experiment.run(config)
    rungs = results[results.rung != ""].groupby(["rung", "target"]).source.agg(lambda names: sorted(set(names)))
    assert rungs.xs("satm/a", level="target").to_dict() == {
        "clean": [""],
        "white_box": ["satm/a"],
        "partner": ["satm/b"],
        "unseen": ["holdout/c"],
        "start": ["start/a"],
        "public_weights": ["public/a"],
        "defended": ["defended/c"],
        "same_scheme": ["readers.satm/d", "readers.satm/e"],
    }
    assert set(results[results.source == "readers.satm/d"].target) == {"satm/a", "satm/b"}, "others are not shown it"

    start = keras.saving.load_model(config.folder.network(Stage("fine_tune", "a"), "a"))
    public = keras.saving.load_model(config.folder.network(Stage("fine_tune", "public/a"), "a"))
    assert not np.array_equal(start.get_weights()[0], public.get_weights()[0]), "from a start of its own"
    table = ladder_table(Predictions.load(config.folder.predictions), by="scheme")
    assert list(table.columns.get_level_values("rung").unique()) == [
        "clean", "unseen", "public_weights", "start", "defended", "same_scheme", "worst", "white_box",
    ]  # fmt: skip
    assert np.isnan(table.loc["ensemble", ("same_scheme", "accuracy")]), "nobody has trained as ensemble does"

    capsys.readouterr()
    assert experiment.run(config).equals(results)
    assert capsys.readouterr().out.count("finished before") == len(config.stages())
    assert json.loads(config.folder.assessment.read_text())["groups"]["readers.satm"] == ["same_scheme", "satm"]


def test_a_scheme_is_copied_onto_the_surrogates_names(with_surrogates):
    both = {"readers": dataclasses.replace(GROUPS["readers"], against=None), "twin": TWIN}
    config = dataclasses.replace(with_surrogates, surrogates=both)
    copied = config.trained_surrogates["readers.ensemble"].scheme
    assert copied.learns_from == {"d": "frozen_e", "e": "frozen_d"}
    sources = config.frozen_sources("readers.ensemble")
    assert {name: str(place.stage) for name, place in sources.items()} == {
        "frozen_d": "fine_tune/readers/d",
        "frozen_e": "fine_tune/readers/e",
    }
    assert [str(stage) for stage in config.needed_stages([Stage("co_train", "twin.ensemble")])] == [
        "fine_tune/twin/a",
        "fine_tune/twin/b",
        "co_train/twin.ensemble",
    ]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (SurrogateConfig("hidden"), "rung in surrogates.group"),
        (SurrogateConfig("queries"), "rung in surrogates.group"),
        (SurrogateConfig("twin", {"a": NETWORK, "b": NETWORK}), "of models with a scheme"),
        (SurrogateConfig("unseen", {"d": NETWORK}, {"preset": "pgd"}), "of models with no scheme"),
        (SurrogateConfig("same_scheme", {"a": NETWORK, "d": NETWORK}, "same"), "its partners'"),
        (SurrogateConfig("same_scheme", {"d": NETWORK}, "same"), "needs the same number: 2"),
        (SurrogateConfig("twin", {"a": NETWORK}, "same"), "a twin has the architectures"),
        (SurrogateConfig("defended", scheme={"preset": "pgd"}, images="share"), "networks and a start of their own"),
        (SurrogateConfig("unseen", {"d": NETWORK}, images="share"), "data.surrogate_share"),
        (SurrogateConfig("unseen", start="same"), "rung start"),
        (SurrogateConfig("defended", scheme={"preset": "pgd"}, against=["satm"]), "against chooses"),
    ],
)
def test_what_does_not_fit_together_is_found_before_any_work(config, group, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, surrogates={"group": group})


def test_a_group_is_never_a_scheme_whose_networks_are_partners(config):
    with pytest.raises(ValueError, match="partners"):
        dataclasses.replace(config, surrogates={"satm": TWIN})


def test_the_defence_never_sees_the_withheld_share(config):
    images = load_data(config.data, config.folder, 0)
    named = data.Examples(np.arange(60) % 3, paths=[f"{n}.png" for n in range(60)], subjects=np.arange(60) // 3)
    test = data.Examples([0], paths=["test.png"])
    shares = divide(dataclasses.replace(images, train=named, test=test), 0.25, seed=3)
    assert len(shares.surrogates) == 15
    assert not set(shares.defence.subjects) & set(shares.surrogates.subjects)
    leaking = dataclasses.replace(images, train=named, test=named)
    with pytest.raises(ValueError, match="not be trained on test images"):
        divide(leaking, 0.25, seed=3)
    assert len(divide(images, 0.0, seed=3).surrogates) == 0
