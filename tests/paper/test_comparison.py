"""Predictions are planted, a rate of its own in every cell, and must come out in the right place of each table."""

import numpy as np
import pandas as pd
import pytest

from satm_tf.evaluation import Predictions
from satm_tf.experiment.config import from_arguments
from satm_tf.paper.comparison import Repeat, compare, markdown
from satm_tf.paper.measuring import Cell, cells_of
from satm_tf.paper.tables import READINGS, SETTLED, TABLES

IMAGES = 1000
FACES, DIGITS = from_arguments(["--config", "paper"]), from_arguments(["--config", "paper_mnist"])
CONFIGS = {"faces": FACES, "digits": DIGITS}
EPSILON = 16 / 256


def planted(cells, labels=None, shift=0):
    """Each cell has `its number + shift` images right of a thousand, the others one class off, or three."""
    labels = np.full(IMAGES, 4, np.int32)
    predicted = np.empty((len(cells), IMAGES), np.int32)
    for number, row in enumerate(predicted):
        row[:] = 7
        row[: 2 * (number + shift)] = 5  # Half of these are beside the true class,
        row[: number + shift] = 4  # and half are right.
    return Predictions(pd.DataFrame(cells, columns=list(Cell._fields)), predicted, labels, 8)


@pytest.fixture(scope="module", params=["faces", "digits"])
def everything(request):
    """The cells of all tables of an experiment, and the transposed ones, which must not be taken for them."""
    config = CONFIGS[request.param]
    cells = dict.fromkeys(
        cell
        for table in TABLES.values()
        if table.experiment == request.param
        for entry in table.entries
        for reading in READINGS
        for cell in cells_of(config, table, entry, reading)
    )
    cells |= dict.fromkeys(Cell(c.attack, c.epsilon, c.target, c.source) for c in list(cells) if c.source)
    return request.param, list(cells)


VGG, RESNET = "vgg16_face", "resnet50_face"
# Table, reading, network, examples of, epsilon, scheme; then the cells that it must be, and the printed rate.
# fmt: off
PLACES = [
    (1, "least_likely", VGG, "its own", 32 / 256, "before",
     "r+step_ll", ["before/vgg16_face"], "before/vgg16_face", 3.95),
    (1, "true", RESNET, "its own", 4 / 256, "before",
     "r+fgsm", ["before/resnet50_face"], "before/resnet50_face", 21.8),
    (1, "true", RESNET, "clean images", 0.0, "before",
     "clean", [""], "before/resnet50_face", 59.08),
    (2, "true", RESNET, "its own", EPSILON, "satm",
     "r+fgsm", ["satm_true/resnet50_face"], "satm_true/resnet50_face", 12.56),
    (2, "true", VGG, "its own", EPSILON, "pgd",
     "r+fgsm", ["pgd/vgg16_face"], "pgd/vgg16_face", None),
    (3, "least_likely", "holdout/inception_v3", RESNET, EPSILON, "satm",
     "r+step_ll", ["satm_least_likely/resnet50_face"], "holdout/inception_v3", 19.67),
    (4, "least_likely", VGG, RESNET, EPSILON, "satm",
     "r+step_ll", ["satm_least_likely/resnet50_face"], "satm_least_likely/vgg16_face", 52.4),
    (4, "true", RESNET, VGG, EPSILON, "before",
     "r+fgsm", ["before/vgg16_face"], "before/resnet50_face", 16.25),
    (4, "true", RESNET, "clean images", 0.0, "satm",
     "clean", [""], "satm_true/resnet50_face", 51.77),
    (5, "least_likely", VGG, "resnet101_img", EPSILON, "ensemble",
     "r+step_ll", ["holdout/resnet101_img"], "ensemble_least_likely/vgg16_face", 35.87),
    (5, "true", RESNET, "inception_resnet_v2", 2 * EPSILON, "satm",
     "r+fgsm", ["holdout/inception_resnet_v2"], "satm_true/resnet50_face", 48.26),
    (5, "true", RESNET, "inception_resnet_v2", EPSILON, "satm",
     "r+fgsm", ["holdout/inception_resnet_v2"], "satm_true/resnet50_face", None),
    (6, "least_likely", RESNET, "resnet101_img", EPSILON, "satm_with_resnet50_img",
     "r+step_ll", ["holdout/resnet101_img"], "satm_with_resnet50_img_least_likely/resnet50_face", 31.61),
    (7, "true", "structure_a", "structure_c, structure_d", 0.3, "ensemble",
     "r+fgsm", ["holdout/structure_c", "holdout/structure_d"], "ensemble_true/structure_a", 5.2),
]
# fmt: on


def test_every_table_takes_the_cells_it_means(everything):
    experiment, cells = everything
    repeat = Repeat(0, 0, planted(cells), ordered=experiment == "faces")
    checked = 0
    for number, reading, network, examples, epsilon, scheme, attack, sources, target, printed in PLACES:
        if TABLES[number].experiment != experiment:
            continue
        rows = compare(TABLES[number], CONFIGS[experiment], [repeat], reading)
        where = (rows.target == network) & (rows.examples_of == examples) & (rows.scheme == scheme)
        row = rows[where & np.isclose(rows.epsilon, epsilon)].squeeze()
        rates = [cells.index(Cell(attack, epsilon, source, target)) / 10 for source in sources]
        expected = 100 - np.mean(rates) if number == 7 else np.mean(rates)
        assert row.rate == pytest.approx(expected, abs=1e-9), (number, network, scheme)
        assert row.images == IMAGES
        if printed is None:
            assert np.isnan(row.paper_rate)
        else:
            assert row.paper_rate == pytest.approx(printed)
            assert row.rate_difference == pytest.approx(expected - printed)
        if experiment == "faces":
            assert row.one_off == pytest.approx(2 * rates[0], abs=1e-9)
        checked += 1
    assert checked == (1 if experiment == "digits" else len(PLACES) - 1)


def test_gains_are_paired_and_repeats_give_a_mean_and_a_deviation(everything):
    experiment, cells = everything
    if experiment == "digits":
        pytest.skip("one experiment is enough")
    repeats = [Repeat(fold, 0, planted(cells, shift=shift), True) for fold, shift in enumerate((0, 10, 50))]
    rows = compare(TABLES[2], FACES, repeats, "true").set_index(["target", "scheme"])
    before, after = (
        cells.index(Cell("r+fgsm", EPSILON, name, name)) for name in ("before/vgg16_face", "satm_true/vgg16_face")
    )
    row = rows.loc[("vgg16_face", "satm")]
    assert row.rate == pytest.approx(after / 10 + 2)  # Shifts of 0, 1 and 5 points.
    assert row.rate_sd == pytest.approx(np.std([0, 1, 5], ddof=1))
    assert (row.repeats, row.images) == (3, 3 * IMAGES)
    assert [row.over_before, row.over_before_low, row.over_before_high] == pytest.approx(3 * [(after - before) / 10])
    assert row.paper_over_before == pytest.approx(7.22 - 4.30)
    text = markdown(2, TABLES[2], rows.reset_index(), "How it was made.")
    assert f"{row.rate:.1f} ± 2.6 | 7.22" in text
    assert "4.30" in text
    assert SETTLED["reading"] in text


def test_leaking_is_told_from_chance():
    table = TABLES[4]
    cells = list(dict.fromkeys(c for entry in table.entries for c in cells_of(FACES, table, entry, "true")))
    leaks = cells_of(FACES, table, next(e for e in table.entries if e.scheme == "satm" and e.sources), "true")[0]
    predicted = np.full((len(cells), IMAGES), 7)
    predicted[:, :500] = 4
    predicted[cells.index(leaks), :600] = 4
    predictions = Predictions(
        pd.DataFrame(cells, columns=list(Cell._fields)), predicted, np.full(IMAGES, 4, np.int32), 8
    )
    rows = compare(table, FACES, [Repeat(0, 0, predictions, True)], "true")
    text = markdown(4, table, rows, "")
    assert "better than clean ones: satm, vgg16_face, by +10.0 (" in text
    assert text.count("vgg16_face, by") == 1
