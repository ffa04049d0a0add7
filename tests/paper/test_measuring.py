import pytest

from satm_tf.experiment.config import from_arguments
from satm_tf.paper import measuring
from satm_tf.paper.measuring import Cell, _batches, resolve, stage_of, stages_of
from satm_tf.paper.tables import TABLES

SMALL = from_arguments(["--config", "small"])


@pytest.mark.parametrize(
    ("name", "reading", "network", "stage"),
    [
        ("before/vgg16_face", "true", "before/vgg16_face", "fine_tune/vgg16_face"),
        ("holdout/inception_v3", "true", "holdout/inception_v3", "fine_tune/inception_v3"),
        ("pgd/vgg16_face", "true", "pgd/vgg16_face", "co_train/pgd"),
        ("satm/vgg16_face", "least_likely", "satm_least_likely/vgg16_face", "co_train/satm_least_likely"),
    ],
)
def test_names_in_tables_are_networks_of_runs(name, reading, network, stage):
    found = resolve(SMALL, name, reading)
    assert str(found) == network
    assert str(stage_of(found)) == stage


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match=r"Unknown scheme of a table.*Received: 'stam'"):
        resolve(SMALL, "stam/vgg16_face", "true")


def test_calls_cover_every_cell_once_and_nothing_else():
    cells = {
        cell for n in range(1, 7) for entry in TABLES[n].entries for r in measuring.READINGS
        for cell in measuring.cells_of(SMALL, TABLES[n], entry, r)
    }  # fmt: skip
    covered = [
        Cell(attack, epsilon, source, target)
        for (attack, targets, epsilons), sources in _batches(cells).items()
        for source in sources or [""]
        for epsilon in epsilons
        for target in targets
    ]
    assert len(covered) == len(set(covered))
    assert set(covered) == cells
    assert _batches(set()) == {}


def test_at_the_paper_scale_epsilons_are_as_printed():
    config = from_arguments(["--config", "paper"])
    for number, epsilons in ((1, {0, 4, 8, 16, 32}), (2, {16}), (4, {0, 16}), (5, {16, 32})):
        found = {
            256 * cell.epsilon
            for entry in TABLES[number].entries
            for cell in measuring.cells_of(config, TABLES[number], entry, "true")
        }
        assert found == epsilons


def test_stages_are_named_once():
    cells = [
        Cell("clean", 0.0, "", "before/a"),
        Cell("x", 0.1, "satm/b", "before/a"),
        Cell("x", 0.1, "satm/b", "satm/a"),
    ]
    assert sorted(map(str, stages_of(cells))) == ["co_train/satm", "fine_tune/a"]
