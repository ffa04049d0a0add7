import dataclasses
import re

import pytest
import yaml

from satm_tf import train
from satm_tf.data import Augmentation
from satm_tf.experiment import config as configuration
from satm_tf.experiment.config import PRESETS, from_arguments, make_attack
from satm_tf.experiment.run_folder import Stage
from satm_tf.training import Scheme, UnifiedEmbedding
from tests.experiment.fuzzing import fuzz_configurations


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
    assert "The seed of all random numbers." in text
    assert "Height and width of the networks' input, in pixels." in text
    assert "quickstart" in text


def changed(config, **changes):
    return dataclasses.replace(config, **changes)


def change(**fields):
    """A function that gives a configuration these fields."""
    return lambda config: changed(config, **fields)


def data(**fields):
    return lambda config: changed(config, data=dataclasses.replace(config.data, **fields))


def scheme(**fields):
    return lambda config: changed(config, schemes={"s": configuration.SchemeConfig(**fields)})


def co_train(**fields):
    return lambda config: changed(config, co_train=configuration.TrainingConfig(**fields))


def section(field, kind, **fields):
    """Makes the section when it is called, because it checks itself."""
    return lambda config: changed(config, **{field: kind(**fields)})


def checks(**fields):
    return section("checks", configuration.ChecksConfig, **fields)


def export(**fields):
    return section("export", configuration.ExportConfig, **fields)


def loss(**fields):
    return section("loss", configuration.LossConfig, **fields)


NETWORK = configuration.NetworkConfig("tiny_for_experiments")
SATM = configuration.SchemeConfig(preset="satm")
ONCE = {"preset": "pubdef", "crafted_once": 1}
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change(networks={}), "needs networks"),
        (change(attack={"name": "fgms", "epsilon": 0.1}), "Did you mean 'fgsm'"),
        (change(attack={"name": "fgsm", "epsilon": 16}), "16/256"),
        (change(attack={"name": "fgsm", "epsilon": 0.1, "alfa": 1}), "option of attack"),
        (change(evaluation_attacks={"x": {"name": "nothing"}}), "Unknown attack"),
        (change(networks={"a": configuration.NetworkConfig("compact_vg")}), "Did you mean 'compact_vgg'"),
        (change(holdouts={"a": NETWORK}), "must not be one of the networks"),
        (change(networks={"a": NETWORK, "frozen_a": NETWORK}), "name of a frozen network"),
        (change(networks={"itself": NETWORK}), "these are reserved words"),
        (change(networks={"a/b": NETWORK}), "must start with a letter"),
        (scheme(learns_from="other"), "Did you mean 'others'"),
        (scheme(learns_from={"a": "frozen_z", "b": "a"}), "Unknown source"),
        (scheme(networks=["a", "z"]), "Unknown network"),
        (scheme(sparring=["z"]), r"Unknown network in schemes\.s\.sparring"),
        (scheme(frozen_from="t"), "trained before it"),
        (scheme(starts_from="t"), "trained before it"),
        (
            change(
                schemes={
                    "s": configuration.SchemeConfig(preset="adversarial", networks=["a"]),
                    "t": configuration.SchemeConfig(starts_from="s"),
                }
            ),
            "Missing: b",
        ),
        (scheme(epochs=-1), r"schemes\.s\.epochs must be a whole number of 0 or more"),
        (scheme(preset="stam"), "Did you mean 'satm'"),
        (scheme(batch_norm={"aa": "frozen"}), "Received: aa; networks that do: a, b"),
        (scheme(attack={"z": {"name": "fgsm"}}), "Unknown source in attack"),
        (scheme(preset="mutual", networks=["a"]), "'a' cannot learn from 'others'"),
        (scheme(learns_from="itself", peer_weight=1.0, networks=["a"]), "peer_weight needs at least two"),
        (scheme(crafted_once=1), "Received: a, b"),
        (scheme(preset="pubdef", crafted_once=0.5), "crafted_once must be a whole number of 0 or more, or null"),
        (
            lambda c: scheme(**ONCE)(data(augmentation=Augmentation())(c)),
            r"schemes\.s\.crafted_once needs images that are the same in every epoch",
        ),
        (
            lambda c: scheme(**ONCE)(changed(c, strategy="mirrored")),
            r"schemes\.s\.crafted_once works on one device only",
        ),
        (checks(schemes=["stam"]), "Did you mean 'satm'"),
        (checks(effort={"step": 1}), "Did you mean 'steps'"),
        (co_train(epochs=-1), r"co_train\.epochs must be"),
        (export(scheme="stam"), "export.scheme must be one of"),
        (export(detector="quantised_rbf"), "--export.scheme SCHEME"),
        (export(detector="pca"), "Unknown detector"),
        (change(fine_tune=configuration.TrainingConfig(optimizer="adamm")), "adamm"),
        (data(image_size=4), "at least 8 x 8"),
        *(
            (change(networks={name: NETWORK}), "must start with a letter")
            for name in ("123", 123, "yes", True, None, 1.5, "", "a\nb", "a" * 101, "é" * 51, "a.b", "a\\b")
        ),
        (change(schemes={"no": SATM}), "must start with a letter"),
        (change(schemes={"holdout": SATM}), "the name of unseen networks in results"),
        (change(schemes={"unseen": SATM}), "a rung of the ladder in results"),
        (change(schemes={"fine_tune": SATM}), "the name of the fine-tuned networks"),
        *(
            (change(name=name), "name becomes a folder")
            for name in ("a\nb", "a" * 300, "é" * 60, "", "a/b", "..", "nul\0", "\u202ea")
        ),
        *((change(seed=seed), "seed must be") for seed in (-1, 1e20, 10**20, True, 2.5)),
        *((co_train(learning_rate=rate), "learning_rate must be") for rate in (-1.0, 0.0, NAN, INFINITY)),
        (co_train(optimizer_options={"learning_rate": 0.1}), r"in co_train\.learning_rate"),
        *(
            (co_train(optimizer=name), "Unknown Keras optimizer")
            for name in ("LossScaleOptimizer", "loss_scale_optimizer", "MultiOptimizer", "Optimizer", "nothing")
        ),
        (co_train(optimizer_options={"momentun": 0.9}), "momentun"),
        *(
            (co_train(optimizer_options={name: value}), rf"co_train\.optimizer_options\.{name} must be")
            for name, values in {
                "beta_1": (NAN, "nan", "text", 1, 2, -0.1, None, True),
                "clipnorm": (-1, 0, NAN, "1"),
                "weight_decay": (-1, NAN),
                "loss_scale_factor": (0, INFINITY),
                "epsilon": (-1,),
                "amsgrad": (1,),
            }.items()
            for value in values
        ),
        (
            co_train(optimizer="muon", optimizer_options={"muon_b": NAN}),
            r"muon_b must be a finite number\. Received: nan",
        ),
        *((change(run_dir=path), "run_dir must be a path") for path in ("", "\0", "a\nb", "a" * 256, "é" * 128)),
        *((export(folder=path), "export.folder must be a path") for path in ("", "\0", "a\nb", "a" * 256)),
        (data(root="a\0b"), r"data\.root must be a path"),
        (data(image_size=100_000), "image_size must be at most 8192"),
        (section("queries", configuration.QueriesConfig, budgets=[10, 10]), "queries.budgets must not repeat"),
        *(
            (
                change(evaluation_attacks={"pgd": {"name": "pgd", "steps": steps}}),
                r"steps of attack 'pgd' must be a whole number\. Received|steps must be at least 1",
            )
            for steps in (0, -1, 1.5, 1e9, True, "3", None)
        ),
        *((loss(class_weights=weights), "class_weights must be") for weights in ([], [-1.0], [NAN])),
        (loss(label_smoothing=NAN), "label_smoothing"),
        *(
            (change(attack={"name": "fgsm", "epsilon": epsilon}), r"^epsilon .*\. Received: ")
            for epsilon in (NAN, INFINITY, -0.1, "nan", "8/255", True)
        ),
        (scheme(epsilon=NAN), "epsilon must be"),
        (scheme(peer_weight="much"), "peer_weight must be"),
        *(
            (data(**{field: -3}), rf"data\.{field} must be")
            for field in ("limit", "test_limit", "image_size", "validation_share", "fold")
        ),
        (data(test_share=1), r"data\.test_share must be below 1"),
        *((checks(effort=effort), "of 1 or more") for effort in ({"steps": 0}, {"queries": -1}, {"targets": 1.5})),
        (checks(limit=0), r"checks\.limit must be"),
        (change(networks={"a": configuration.NetworkConfig("compact_vgg", dropout=1.5)}), "dropout must be below 1"),
    ],
)
def test_bad_configurations_are_not_made(config, change, message):
    with pytest.raises(ValueError, match=message):
        change(config)


def test_the_hostile_values_of_a_file_are_one_sentence(tmp_path, capsys):
    path = tmp_path / "hostile.yaml"
    for text, message in (
        ("co_train: {learning_rate: .nan}", "learning_rate must be"),
        ("co_train: {learning_rate: 1e999}", "learning_rate must be"),
        ("attack: {name: fgsm, epsilon: .nan}", "epsilon"),
        ("seed: 1e20", r"error: seed must be a whole number\. Received: 1e\+20\n$"),
        ("seed: null", r"error: seed must not be null; omit it to use the default\. Received: null\n$"),
        ("data: {limit: 1.5}", r"error: data.limit must be a whole number or null\. Received: 1.5\n$"),
        ("data: {limit: 0}", r"error: data.limit must be a whole number of 1 or more, or null\. Received: 0\n$"),
        ("data: {limit: true}", r"error: data.limit must be a whole number or null\. Received: True\n$"),
        ("loss: {class_weights: [.nan, x]}", r"or a list or null\. Received: \[nan, 'x'\]\n$"),
        ("precision: float8", r"error: precision must be one of 'float32', .*'auto'\. Received: float8\n$"),
        ("loss: {class_weights: text}", r"weights must be one of 'balanced' or a list or null\. Received: text\n$"),
        ("networks: {123: {backbone: compact_vgg}}", "123"),
        ("networks: {yes: {backbone: compact_vgg}}", "yes|True"),
        ('name: "a\\nb"', "name becomes a folder"),
        ("checks: {limit: 0}", "checks.limit"),
    ):
        path.write_text(yaml.safe_dump({**yaml.safe_load(PRESETS["quickstart"].read_text())}) + text + "\n")
        try:
            code = train.main(["--config", str(path), "--dry-run"])
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr().err
        assert code in (1, 2), text
        assert re.search(message, printed), printed
        assert "Traceback" not in printed


def test_what_a_configuration_is_printed_as_gives_it_again(tmp_path, capsys):
    given = ["--schemes.satm.domain_adaptation", "none", "--schemes.satm.attack", "{name: pgd}", "--seed", "3"]
    with pytest.raises(SystemExit):
        from_arguments([*given, "--print_config"])
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert from_arguments(["--config", str(path)]) == from_arguments(given)
    assert from_arguments(given).scheme("satm").domain_adaptation is None


def test_frozen_networks_of_several_schemes_and_sparring_partners(config):
    groups = configuration.SchemeConfig(
        preset="pubdef", learns_from={"a": "frozen", "b": ["satm/a", "sparring_a"]}, networks=["a", "b"],
        frozen_from=["fine_tune", "satm"], sparring=["a"],
    )  # fmt: skip
    made = changed(config, schemes={"satm": configuration.SchemeConfig(preset="satm"), "groups": groups})
    expected = {f"fine_tune/{name}": (Stage("fine_tune", name), name) for name in "ab"}
    expected |= {f"satm/{name}": (Stage("co_train", "satm"), name) for name in "ab"}
    assert made.frozen_sources("groups") == expected
    with pytest.raises(ValueError, match=r"schemes.groups.frozen_from must be a scheme that is trained before it"):
        changed(config, schemes={"groups": groups})


def test_a_changed_file_is_a_configuration_or_a_message(tmp_path):
    outcomes = fuzz_configurations(seed=0, count=30, folder=tmp_path, limit=20)
    assert outcomes["refused"] > 10
