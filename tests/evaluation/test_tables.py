import pandas as pd
import pytest

from satm_tf.evaluation import robustness_table


@pytest.fixture
def results():
    """Every cell has a rate of its own: clean 0.9, then 0.01 per row."""
    measured = ["plain/a", "plain/b", "satm/a", "satm/b", "holdout/c"]
    cells = [("clean", "", target) for target in measured]
    cells += [(attack, source, target) for attack in ("x", "y") for source in measured for target in measured]
    frame = pd.DataFrame(cells, columns=["attack", "source", "target"])
    return frame.assign(classification_rate=[index / 100 for index in range(len(frame))])


def cell(results, attack, source, target):
    chosen = results[(results.attack == attack) & (results.source == source) & (results.target == target)]
    return chosen.classification_rate.item()


def test_each_cell_stands_where_it_belongs(results):
    table = robustness_table(results, "y")
    assert list(table) == ["clean", "white box", "partners", "c"]
    assert list(table.index) == [("a", "plain"), ("a", "satm"), ("b", "plain"), ("b", "satm")]
    row = table.loc[("a", "satm")]
    assert row["clean"] == cell(results, "clean", "", "satm/a")
    assert row["white box"] == cell(results, "y", "satm/a", "satm/a")
    assert row["partners"] == cell(results, "y", "satm/b", "satm/a")
    assert row["c"] == cell(results, "y", "holdout/c", "satm/a")


def test_a_single_network_has_no_partners(results):
    alone = results[~results.source.str.endswith("/b") & ~results.target.str.endswith("/b")]
    assert list(robustness_table(alone, "x")) == ["clean", "white box", "c"]


def test_unknown_attack(results):
    with pytest.raises(ValueError, match=r"only of \['clean', 'x', 'y'\]"):
        robustness_table(results, "z")
