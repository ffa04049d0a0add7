import dataclasses

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import satm_tf
from satm_tf.attacks import FGSM, RandomisedStep
from satm_tf.evaluation import Predictions, assess, label_leaking, masking_checks, measure
from satm_tf.evaluation.assessment import check_names
from satm_tf.evaluation.report.answer import answer
from satm_tf.models import FromProbabilities
from tests.evaluation.conftest import Channel

EPSILON = 0.1
EFFORT = {"steps": 2, "targets": 1, "queries": 5}


class Probabilities(Channel):
    def __call__(self, images, training=None):
        return tf.nn.softmax(super().__call__(images))


class Rounded(Channel):
    def __call__(self, images, training=None):
        return super().__call__(tf.round(20 * images) / 20)


class Fifth(Channel):
    def __call__(self, images, training=None):
        return tf.concat([super().__call__(images)] * 2 + [tf.zeros_like(images[:, :1, 0, 0])], -1)


# The network to check has no gradient, so that no AutoAttack is traced.
MODELS = {"satm/red": Channel(0), "satm/green": Rounded(1), "holdout/blue": Channel(2)}
ATTACKS = {"fgsm": FGSM(epsilon=EPSILON), "r": RandomisedStep(epsilon=0.06)}


@pytest.fixture(scope="module")
def dataset():
    """Twelve images in batches of five: each channel is dark or bright by 0.02 to 0.13."""
    generator = np.random.default_rng(0)
    labels = np.arange(12, dtype=np.int32) % 2
    margins = generator.uniform(0.02, 0.13, (12, 1, 1, 3)) * (2 * labels[:, None, None, None] - 1)
    images = np.broadcast_to(0.5 + margins, (12, 4, 4, 3)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)


def arguments(dataset, folder=None, **changes):
    options = {"dataset": dataset, "attacks": ATTACKS, "epsilons": {"fgsm": [0.05, EPSILON]}, "effort": EFFORT}
    options |= {
        "check_limit": 8,
        "checked": ["satm/green"],
        "class_names": ["dark", "bright"],
        "account": "Twelve images",
    }
    return {**options, "columns": {"fold": 3, "first": lambda rows: rows.target.str[0]}, "folder": folder, **changes}


@pytest.fixture(scope="module")
def checks_asked():
    """What `masking_checks` was asked for."""
    return {}


@pytest.fixture(scope="module")
def assessed(dataset, checks_asked, tmp_path_factory):
    """An assessment with checks, in a folder."""

    def recorded(networks, **options):
        checks_asked.update(options, networks=list(networks))
        return masking_checks(networks, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("satm_tf.evaluation.assessment.masking_checks", recorded)
        return assess(MODELS, **arguments(dataset, tmp_path_factory.mktemp("assessed")))


def test_it_is_what_its_parts_give(assessed, dataset):
    predictions = measure(
        sources={name: MODELS[name] for name in ("satm/red", "holdout/blue")},
        targets=MODELS,
        dataset=dataset,
        attacks=ATTACKS,
        epsilons={"fgsm": [0.05, EPSILON]},
    )
    np.testing.assert_array_equal(assessed.predictions.predicted, predictions.predicted)
    expected = predictions.frame(ordered=False)
    pd.testing.assert_frame_equal(assessed.results[list(expected)], expected)
    assert list(assessed.results)[:2] == ["fold", "first"]
    assert set(assessed.results.fold) == {3}
    assert set(assessed.results["first"]) == {"s", "h"}
    pd.testing.assert_frame_equal(assessed.leaking, label_leaking(predictions))
    assert satm_tf.assess is assess


def test_the_checks_are_of_images_that_the_seed_chooses(assessed, checks_asked, dataset):
    images, labels = map(np.concatenate, zip(*dataset.as_numpy_iterator(), strict=True))
    # As `data.Examples.limit` chooses them.
    chosen = np.sort(np.random.default_rng(0).permutation(12)[:8])
    batches = list(checks_asked["dataset"].as_numpy_iterator())
    assert [len(batch) for _, batch in batches] == [5, 3]
    np.testing.assert_array_equal(np.concatenate([batch for batch, _ in batches]), images[chosen])
    np.testing.assert_array_equal(np.concatenate([batch for _, batch in batches]), labels[chosen])
    assert checks_asked["networks"] == ["satm/green"]
    assert list(checks_asked["undefended"]) == ["holdout/blue"]
    assert checks_asked["epsilon"] == EPSILON, "the largest of the attacks"
    assert {name: checks_asked[name] for name in EFFORT} == EFFORT
    assert set(assessed.checks.network) == {"satm/green"}


def test_what_it_prints(assessed):
    printed = str(assessed)
    assert "accuracy, fgsm, epsilon 0.05\n" in printed
    assert "one-off" not in printed, "classes without an order"
    assert "white box" in printed, "names are of schemes"
    assert "Label leaking (adversarial images classified better than clean ones): none found" in printed
    assert "Gradient masking: detected by 1 of 10 checks\n  satm/green, gradient: No gradient" in printed
    assert f"\n\n{answer(assessed.predictions)[0]}\n" in printed
    lacking = assessed.results.assign(accuracy=assessed.results.accuracy.where(assessed.results.source != "satm/green"))
    assert "nan" not in str(dataclasses.replace(assessed, results=lacking)), "what was not measured is left blank"


def test_a_folder_holds_all_of_it_and_is_read_when_asked_again(assessed, dataset, monkeypatch):
    folder = assessed.folder.path
    assert sorted(path.name for path in folder.iterdir() if path.name not in ("report.html", "figures")) == [
        "assessment.json", "blocks", "checks.csv", "class_names.json", "data.txt", "gallery", "predictions.npz",
        "results.csv", "surfaces.csv",
    ]  # fmt: skip
    assert set(pd.read_csv(folder / "surfaces.csv").network) == {"satm/green", "holdout/blue"}
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("satm_tf.evaluation.assessment.measure", None)
    monkeypatch.setattr("satm_tf.evaluation.assessment.masking_checks", None)
    again = assess(MODELS, **arguments(dataset, folder))
    for name in ("results", "leaking", "checks"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(assessed, name))
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    page = again.report()
    assert page == folder / "report.html"
    assert "Twelve" in page.read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"check_limit": 9}, "checks"),
        ({"attacks": {"fgsm": FGSM(epsilon=0.2), "r": ATTACKS["r"]}}, "attacks"),
        ({"sources": {"satm/red": MODELS["satm/red"]}}, "sources"),
        ({"targets": {**MODELS, "satm/red": Channel(1)}}, "models"),
    ],
)
def test_a_folder_of_another_assessment_is_refused(assessed, dataset, changes, named):
    with pytest.raises(ValueError, match=rf"another assessment; .* other values of {named}"):
        assess(**{"targets": MODELS, **arguments(dataset, assessed.folder.path), **changes})


def test_images_of_another_assessment_are_refused(assessed, dataset):
    darker = dataset.map(lambda images, labels: (images * 0.99, labels))
    with pytest.raises(ValueError, match="other values of images"):
        assess(MODELS, **arguments(darker, assessed.folder.path))


def test_without_a_folder_nothing_is_written(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = assess({"red": Channel(0)}, dataset=dataset, attacks=[FGSM(epsilon=EPSILON)], ordered=True, check_limit=0)
    assert found.checks is None
    assert found.results.attack.tolist() == ["clean", "fgsm"], "by its registered name"
    assert "one-off accuracy, fgsm, epsilon 0.1" in str(found)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="give `assess` a folder"):
        found.report()


def test_probabilities_are_attacked_through_their_logarithm(dataset):
    models = {"logits": Channel(0), "probabilities": Probabilities(0), "wrapped": FromProbabilities(Probabilities(0))}
    found = assess(models, dataset=dataset, attacks={"fgsm": ATTACKS["fgsm"]}, check_limit=0).predictions
    attacked = [found.row("fgsm", EPSILON, name, "logits") for name in models]
    assert not np.array_equal(attacked[0], found.labels)
    np.testing.assert_array_equal(attacked[1], attacked[0])
    np.testing.assert_array_equal(attacked[2], attacked[0])


def test_a_source_without_a_gradient_is_left_out_and_named(dataset):
    models = {"red": Channel(0), "rounded": Rounded(0)}
    found = assess(models, dataset=dataset, attacks={"fgsm": ATTACKS["fgsm"]}, check_limit=0)
    assert found.left_out == ("rounded",)
    assert set(found.results.source) == {"", "red"}
    assert set(found.results.target) == {"red", "rounded"}
    assert str(found).startswith("rounded: no gradient reaches the images, so it crafts none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"undefended": ["holdout/blu"]}, "Did you mean 'holdout/blue'"),
        ({"checked": ["holdout/blue"]}, "Unknown network to check"),
        ({"before": {"satm/red": Channel(0)}}, "Unknown network to check"),
        ({"sources": {"satm/red": Channel(1)}}, "must refer to one network"),
        ({"effort": {"step": 3}}, "Did you mean 'steps'"),
        ({"attacks": [FGSM(epsilon=0.1), FGSM(epsilon=0.2)]}, "give a mapping"),
        ({"attacks": {"clean": FGSM(epsilon=0.1)}}, "is reserved for clean images"),
        ({"epsilons": {"pgd": [0.1]}}, "Give at least one epsilon for each attack"),
        ({"class_names": ["dark"]}, "distinguish 2 classes, but the images have 1"),
        ({"targets": {**MODELS, "five": Fifth(0)}}, "same num_classes"),
        ({"targets": {}, "checked": []}, "at least one target"),
        ({"targets": {"a": lambda images: Channel(0)(images)}, "checked": []}, "attribute `fingerprint`"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(dataset, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        assess(**{"targets": MODELS, **arguments(dataset, tmp_path / "out"), **changes})
    assert not (tmp_path / "out").exists()


def test_which_networks_are_checked_by_their_names():
    assert check_names(MODELS, None) == (["holdout/blue"], ["satm/red", "satm/green"])
    assert check_names(MODELS, {"holdout/x": 1}) == (["holdout/blue", "holdout/x"], ["satm/red", "satm/green"])
    assert check_names(MODELS, None, undefended=["satm/red"])[1] == ["satm/green", "holdout/blue"]


def test_what_was_killed_resumes_from_its_blocks(dataset, tmp_path, monkeypatch):
    options = {"dataset": dataset, "attacks": ATTACKS, "check_limit": 0, "folder": tmp_path}
    keep = Predictions.save

    def killed(self, path):
        if path.name == "predictions.npz":
            raise KeyboardInterrupt
        keep(self, path)

    monkeypatch.setattr(Predictions, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        assess({"red": Channel(0)}, **options)
    monkeypatch.undo()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()}
    assert len(stamps) == 3
    found = assess({"red": Channel(0)}, **options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "blocks").iterdir()} == stamps
    pd.testing.assert_frame_equal(found.results, assess({"red": Channel(0)}, **{**options, "folder": None}).results)


def test_a_targets_partner_is_no_surrogate():
    models = {"satm/a": "a.keras", "satm/b": "b.keras"}
    for surrogate in ("same_scheme/x", "twin/b"):
        with pytest.raises(ValueError, match="not a target or its partner"):
            check_names(models, {surrogate: "b.keras"})
    check_names(models, {"twin/b": "another.keras"})
