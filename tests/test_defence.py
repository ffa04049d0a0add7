"""The point of it all, on synthetic faces: trained with SATM, a pair withstands each other's adversarial examples."""

import pytest

from satm_tf import evaluation


@pytest.mark.slow
def test_satm_defends_the_pair_against_each_other_without_label_leaking(quickstart):
    """The quickstart's pair at the quickstart's epsilon, on 480 test faces.

    Measured over three seeds: the gain in accuracy on the partner's R+Step-LL examples over training for as long
    without any, in points, and how far that accuracy stays below the clean one afterwards:

        seed   compact_resnet          compact_vgg
        0      +18.3, 7.9 below        +8.3, 3.7 below
        1      +28.3, 6.2 below        +12.5, 6.0 below
        2      +27.9, 9.2 below        +8.5, 5.0 below

    Asserted, for seed 0, is a mean gain of 8 points (the smallest seen is 13.3) and one of 4 for each network (8.3).
    The standard error of an accuracy on 480 images is 2 points, and another processor rounds otherwise.
    """
    results = evaluation.read_results(quickstart.results)
    table = evaluation.robustness_table(results, "r+step_ll")
    partners = table["partners"].unstack("scheme")
    gain = partners["satm"] - partners["undefended"]
    assert gain.mean() >= 0.08, table
    assert gain.min() >= 0.04, table
    clean = table["clean"].unstack("scheme")
    assert (clean["undefended"] >= 0.6).all(), "the networks must have learnt"
    assert (partners["satm"] <= clean["satm"]).all(), table
    assert not evaluation.label_leaking(evaluation.Predictions.load(quickstart.predictions)).leaks.any()
    white_box = table["white box"].unstack("scheme")
    assert (white_box["undefended"] <= clean["undefended"] / 2).all(), "else there is nothing to defend against"
