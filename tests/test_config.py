import dataclasses

import pytest
import yaml

from satm_tf.config import PRESETS, from_arguments


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
            *("--schemes.satm.domain_adaptation.weight", "0.2"),
            *("--schemes.ensemble.domain_adaptation", "null"),
        ]
    )
    quickstart = from_arguments([])
    assert config.seed == 7
    assert config.data == dataclasses.replace(quickstart.data, root="faces")
    assert config.attack == {**quickstart.attack, "epsilon": 0.03}
    assert config.networks["compact_vgg"].dropout == 0.4
    assert config.networks["compact_resnet"] == quickstart.networks["compact_resnet"]
    assert config.schemes["satm"].domain_adaptation.weight == 0.2
    assert config.schemes["ensemble"].domain_adaptation is None


def test_a_file_that_was_written_from_a_configuration_gives_it_again(tmp_path):
    config = from_arguments(["--attack.epsilon", "0.03", "--schemes.satm.domain_adaptation.strength", "0.5"])
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
        from_arguments(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "The one seed from which everything random follows." in text
    assert "Height and width, in pixels, that the networks see." in text
    assert "quickstart" in text
