import numpy as np
import pandas as pd
import pytest

from satm_tf.evaluation import Predictions, robustness_table
from satm_tf.evaluation.tables import compare_schemes, matrix_table, read_results, strength_table, with_uncertainty


@pytest.fixture
def results():
    """Every cell has a rate of its own: clean 0.9, then 0.01 per row."""
    measured = ["plain/a", "plain/b", "satm/a", "satm/b", "holdout/c"]
    cells = [("clean", "", target) for target in measured]
    cells += [(attack, source, target) for attack in ("x", "y") for source in measured for target in measured]
    frame = pd.DataFrame(cells, columns=["attack", "source", "target"])
    return frame.assign(accuracy=[index / 100 for index in range(len(frame))])


def cell(results, attack, source, target):
    chosen = results[(results.attack == attack) & (results.source == source) & (results.target == target)]
    return chosen.accuracy.item()


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
    with pytest.raises(ValueError, match=r"only for \['clean', 'x', 'y'\]"):
        robustness_table(results, "z")


def test_one_of_several_epsilons_is_chosen(results):
    doubled = pd.concat([results.assign(epsilon=(results.attack != "clean") * epsilon) for epsilon in (0.1, 0.2)])
    doubled.loc[doubled.epsilon == 0.2, "accuracy"] += 1
    table = robustness_table(doubled, "x", epsilon=0.2)
    assert table.loc[("a", "satm"), "partners"] == 1 + cell(results, "x", "satm/b", "satm/a")
    with pytest.raises(ValueError, match="choose one"):
        robustness_table(doubled, "x")
    with pytest.raises(ValueError, match=r"only at the epsilons \[0\.1, 0\.2\]"):
        robustness_table(doubled, "x", epsilon=0.3)


def test_strength_is_the_sources_on_the_holdouts(results):
    table = strength_table(results, "x")
    assert list(table) == ["c"]
    assert table.loc[("b", "plain"), "c"] == cell(results, "x", "plain/b", "holdout/c")


def test_the_matrix_has_sources_down_and_targets_across(results):
    table = matrix_table(results, "x")
    assert table.index[0] == "clean"
    assert table.loc["satm/a", "plain/b"] == cell(results, "x", "satm/a", "plain/b")
    assert table.loc["clean", "plain/b"] == cell(results, "clean", "", "plain/b")


def test_rates_are_printed_with_how_sure_they_are(results):
    results = results.assign(accuracy_low=0.1, accuracy_high=0.95)
    view = lambda rows, column: robustness_table(rows, "x", column)  # noqa: E731
    assert with_uncertainty(results, view).loc[("a", "plain"), "clean"] == "0.0% (10.0 to 95.0)"
    folds = [results.assign(fold=fold, accuracy=results.accuracy + fold / 10) for fold in range(3)]
    printed = with_uncertainty(pd.concat(folds), view)
    assert printed.loc[("a", "plain"), "clean"] == "10.0% ± 10.0 (n = 3)"


@pytest.fixture
def predictions():
    """A hundred images of class 0: each cell gives so many of them right, the first ones."""
    right = {
        ("clean", 0.0, "", "plain/a"): 90,
        ("clean", 0.0, "", "satm/a"): 88,
        ("x", 0.1, "plain/a", "plain/a"): 0,
        ("x", 0.1, "satm/a", "satm/a"): 5,
        ("x", 0.1, "plain/b", "plain/a"): 40,
        ("x", 0.1, "satm/b", "satm/a"): 70,
        ("x", 0.1, "holdout/c", "plain/a"): 50,
        ("x", 0.1, "holdout/c", "satm/a"): 60,
        ("x", 0.1, "plain/b", "satm/a"): 1,
    }
    cells = pd.DataFrame(list(right), columns=["attack", "epsilon", "source", "target"])
    predicted = np.array([[0] * count + [1] * (100 - count) for count in right.values()], np.uint8)
    return Predictions(cells, predicted, np.zeros(100, np.int32), 2)


def test_two_schemes_are_compared_where_they_stand_alike(predictions):
    compared = compare_schemes(predictions, "plain", "satm").set_index(["view", "source_network"])
    assert compared.difference.round(6).to_dict() == {
        ("clean", ""): -0.02,
        ("white box", "a"): 0.05,
        ("partners", "b"): 0.3,
        ("holdout", "c"): 0.1,
    }
    assert compared.loc[("holdout", "c"), ["plain", "satm", "only_first", "only_second"]].tolist() == [0.5, 0.6, 0, 10]
    assert compared.p_value[("holdout", "c")] == pytest.approx(2 / 2**10)
    with pytest.raises(ValueError, match=r"there are \['plain', 'satm'\]"):
        compare_schemes(predictions, "plain", "ensemble")


def test_groups_on_one_rung_with_networks_of_one_name_are_compared_apart():
    right = {"little": (50, 60), "full": (70, 75), "same_scheme": (30, 40)}
    cells = [
        ("x", 0.1, f"{group}.{target}/c" if group == "same_scheme" else f"{group}/c", f"{target}/a", rung)
        for group, rung in (("little", "defended"), ("full", "defended"), ("same_scheme", "same_scheme"))
        for target in ("plain", "satm")
    ]
    predicted = [[0] * count + [1] * (100 - count) for counts in right.values() for count in counts]
    predictions = Predictions(
        pd.DataFrame(cells, columns=["attack", "epsilon", "source", "target", "rung"]),
        np.array(predicted, np.uint8),
        np.zeros(100, np.int32),
        2,
    )
    compared = compare_schemes(predictions, "plain", "satm").set_index(["source_group", "source_network"])
    assert compared[["plain", "satm"]].T.to_dict("list") == {
        ("little", "c"): [0.5, 0.6],
        ("full", "c"): [0.7, 0.75],
        ("same_scheme", "c"): [0.3, 0.4],
    }


@pytest.mark.parametrize("ordered", [True, False])
def test_results_are_read_as_they_were_written(predictions, tmp_path, ordered):
    frame = predictions.frame(ordered)
    frame.insert(0, "fold", None)
    frame.to_csv(tmp_path / "results.csv", index=False)
    read = read_results(tmp_path / "results.csv")
    pd.testing.assert_frame_equal(read, frame.astype({"fold": float}))
    assert set(read.source) >= {""}


def test_other_rungs_stand_after_the_papers_columns(results):
    more = pd.DataFrame(
        [("x", source, target, rate) for source, target, rate in (
            ("start/a", "satm/a", 0.01), ("start/b", "satm/a", 0.99), ("defended/d", "satm/a", 0.3),
            ("defended/e", "satm/a", 0.5),
        )],
        columns=["attack", "source", "target", "accuracy"],
    )  # fmt: skip
    table = robustness_table(pd.concat([results, more], ignore_index=True), "x")
    assert list(table) == ["clean", "white box", "partners", "c", "same starting weights", "defended unseen models"]
    row = table.loc[("a", "satm")]
    assert row["same starting weights"] == 0.01, "another network's start is none of its own"
    assert row["defended unseen models"] == pytest.approx(0.4)
    assert row["partners"] == cell(results, "x", "satm/b", "satm/a")
