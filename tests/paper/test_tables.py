"""The tables as data: the presets that they are measured on, and that all they name is there."""

import pytest

from satm_tf.experiment.config import PRESETS, from_arguments
from satm_tf.paper.measuring import cells_of
from satm_tf.paper.tables import FIGURES, READINGS, SETTLED, TABLES


def test_the_scales_are_the_same_graph():
    for big, small in (("paper", "small"), ("paper_mnist", "small_mnist")):
        one, two = (from_arguments(["--config", name]) for name in (big, small))
        assert list(one.networks) == list(two.networks)
        assert list(one.holdouts) == list(two.holdouts)
        assert list(one.schemes) == list(two.schemes)
        # What a small network needs another number of: steps of an attack, epochs.
        scale = {"attack": None, "epochs": None}
        alike = [{name: {**vars(s), **scale} for name, s in c.schemes.items()} for c in (one, two)]
        assert alike[0] == alike[1]
    assert {"paper", "small", "paper_mnist", "small_mnist"} <= set(PRESETS)


CONFIGS = {"faces": from_arguments(["--config", "small"]), "digits": from_arguments(["--config", "small_mnist"])}


@pytest.mark.parametrize("number", sorted(TABLES))
def test_every_entry_is_of_networks_that_the_presets_have(number):
    table = TABLES[number]
    config = CONFIGS[table.experiment]
    cells = [
        cell for entry in table.entries for reading in READINGS for cell in cells_of(config, table, entry, reading)
    ]
    assert len(set(cells)) > 1
    assert set(table.against) <= {entry.scheme for entry in table.entries}


def test_figures_are_curves_or_pictures():
    assert sorted(FIGURES) == [1, 3, 4]
    assert all((figure.split is None) == bool(figure.epsilons) for figure in FIGURES.values())


def test_every_settled_point_is_used():
    used = {name for table in TABLES.values() for name in table.settled}
    assert used | {"curves"} == set(SETTLED)
