"""What a section of a configuration stands for; that it is checked is tested with the whole, in test_config.py."""

import dataclasses

import pytest

from satm_tf.attacks import FGSM, PGD
from satm_tf.experiment.sections import SchemeConfig, TrainingConfig, check_name
from satm_tf.training import Scheme


@pytest.mark.parametrize(
    ("described", "attacks", "epsilon"),
    [
        ({}, FGSM(epsilon=0.1), None),
        ({"preset": "satm"}, FGSM(epsilon=0.1), None),
        ({"preset": "pgd"}, PGD(epsilon=16 / 256, steps=10), 0.1),
        ({"preset": "pgd", "epsilon": 0.2}, PGD(epsilon=16 / 256, steps=10), 0.2),
        ({"attack": {"name": "pgd", "steps": 3}}, PGD(epsilon=0.1, steps=3), None),
        ({"attack": {"name": "pgd", "epsilon": 0.3}}, PGD(epsilon=0.3), None),
        (
            {"attack": {"itself": {"name": "fgsm"}, "others": {"name": "fgsm", "label_source": "label"}}},
            {"itself": FGSM(epsilon=0.1), "others": FGSM(epsilon=0.1)},
            None,
        ),
    ],
)
def test_a_scheme_takes_the_experiments_attack_or_its_epsilon(described, attacks, epsilon):
    scheme = SchemeConfig(**described).scheme(FGSM(epsilon=0.1))
    assert (scheme.attack, scheme.epsilon) == (attacks, epsilon)


def test_a_preset_of_teachers_trains_without_them_if_they_have_no_weight():
    described = SchemeConfig(preset="distillation", teacher_weight=0, clean_weight=1.0)
    assert described.scheme(FGSM(epsilon=0.1)).teachers is None
    with pytest.raises(ValueError, match="teachers and teacher_weight need each other"):
        dataclasses.replace(described, teachers="frozen").scheme(FGSM(epsilon=0.1))


def test_a_scheme_has_every_field_of_the_trainers_and_six_of_its_own():
    names = {field.name for field in dataclasses.fields(SchemeConfig)}
    own = {"preset", "networks", "starts_from", "epochs", "frozen_from", "sparring"}
    assert names == own | {field.name for field in dataclasses.fields(Scheme)}


def test_an_optimizer_has_its_options_and_decays_over_the_whole_stage():
    optimizer = TrainingConfig(
        optimizer="sgd", learning_rate=0.5, decay="cosine", optimizer_options={"momentum": 0.9}
    ).make_optimizer(steps=10)
    assert optimizer.momentum == 0.9
    schedule = optimizer._learning_rate
    assert [float(schedule(step)) for step in (0, 5, 10)] == pytest.approx([0.5, 0.25, 0.0])


@pytest.mark.parametrize("name", ["a", "compact_vgg", "r+step_ll", "pgd-w3", "é1", "a" * 100])
def test_names_that_files_columns_and_options_can_hold(name):
    check_name("a network", name)
