import dataclasses

import pytest
import yaml

from satm_tf.attacks import FGSM, PGD
from satm_tf.experiment.config import PRESETS, SchemeConfig, from_arguments, make_attack
from satm_tf.training import Scheme, UnifiedEmbedding


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_a_configuration_of_its_name(preset):
    assert from_arguments(["--config", preset]).name == preset


def test_quickstart_is_what_no_arguments_mean():
    assert from_arguments([]) == from_arguments(["--config=quickstart"])


def test_overrides_at_any_depth():
    config = from_arguments(
        [
            *("--seed", "7"),
            *("--data.root", "faces"),
            *("--attack.epsilon", "0.03"),
            *("--networks.compact_vgg.dropout", "0.4"),
            *("--schemes.satm.domain_adaptation", "{name: unified_embedding, weight: 0.2}"),
            *("--schemes.satm.adversarial_weight", "0.5"),
            *("--schemes.ensemble.domain_adaptation", "none"),
        ]
    )
    quickstart = from_arguments([])
    assert config.seed == 7
    assert config.data == dataclasses.replace(quickstart.data, root="faces")
    assert config.attack == {**quickstart.attack, "epsilon": 0.03}
    assert config.networks["compact_vgg"].dropout == 0.4
    assert config.networks["compact_resnet"] == quickstart.networks["compact_resnet"]
    attack = make_attack(config.attack)
    satm = config.schemes["satm"].scheme(attack)
    own = {"domain_adaptation": UnifiedEmbedding(weight=0.2), "adversarial_weight": 0.5}
    assert satm == Scheme.get("satm", attack=attack, **own)
    assert config.schemes["ensemble"].scheme(attack).domain_adaptation is None


def test_schemes_are_added_to_those_of_a_preset():
    config = from_arguments(["--schemes.trades.preset", "trades", "--schemes.mutual.preset", "mutual"])
    assert list(config.schemes) == ["undefended", "ensemble", "satm", "trades", "mutual"]
    assert config.schemes["trades"].scheme(make_attack(config.attack)).adversarial_loss == "divergence"


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


def test_a_file_that_was_written_from_a_configuration_gives_it_again(tmp_path):
    config = from_arguments(["--attack.epsilon", "0.03", "--schemes.satm.adversarial_weight", "0.5"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(config)))
    assert from_arguments(["--config", str(path)]) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "quickstrt"], "Did you mean 'quickstart'"),
        (["--data.rot", "x"], "data.rot"),
        (["--data.format", "adiense"], "adience"),
        (["--seed", "many"], "seed"),
        (["--networks.compact_vgg.dropot", "0.1"], "dropot"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        from_arguments(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_help_describes_every_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        from_arguments(["--help-all"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "The one seed from which everything random follows." in text
    assert "Height and width, in pixels, that the networks see." in text
    assert "quickstart" in text
