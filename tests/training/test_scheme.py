"""Schemes as data: names, mappings, overrides, and what is refused before any work starts."""

import pytest
import tensorflow as tf

from satm_tf import CoTraining, DomainAdversarial
from satm_tf.attacks import FGSM, PGD, RandomisedStep
from satm_tf.training import SCHEMES, Scheme, UnifiedEmbedding, UniformEpsilon

ATTACK = FGSM(epsilon=0.05)


def test_a_preset_by_its_name_is_that_preset():
    for name, scheme in SCHEMES.items():
        assert Scheme.get(name) == scheme
    assert Scheme.get(None) == Scheme()
    assert Scheme.get(SCHEMES["pgd"]) == SCHEMES["pgd"]


def test_a_mapping_as_from_yaml_makes_the_whole_scheme():
    scheme = Scheme.get(
        {
            "preset": "cascade",
            "attack": {
                "itself": {"name": "fgsm", "epsilon": 0.05},
                "frozen": {"name": "pgd", "epsilon": 0.1, "steps": 3},
            },
            "domain_adaptation": {"name": "unified_embedding", "weight": 0.5, "pivot": True},
            "epsilon_schedule": {"name": "uniform", "low": 0.25},
            "batch_norm": {"a": "auxiliary"},
        }
    )
    assert scheme.learns_from == ("itself", "frozen")
    assert scheme.attack == {"itself": ATTACK, "frozen": PGD(epsilon=0.1, steps=3)}
    assert scheme.domain_adaptation == UnifiedEmbedding(weight=0.5, pivot=True)
    assert scheme.epsilon_schedule == UniformEpsilon(low=0.25)


def test_what_is_given_goes_before_the_mapping_and_the_mapping_before_the_preset():
    scheme = Scheme.get({"preset": "trades", "adversarial_weight": 3.0, "peer_weight": 0.5}, peer_weight=0.25)
    assert (scheme.adversarial_weight, scheme.peer_weight) == (3.0, 0.25)
    assert (scheme.adversarial_loss, scheme.attack) == ("divergence", SCHEMES["trades"].attack)


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("sattm", "Unknown scheme. Did you mean 'satm'"),
        ({"preset": "trade"}, "Unknown scheme. Did you mean 'trades'"),
        ({"attack": "fgsm"}, "This attack needs an epsilon; give `epsilon`. Received: 'fgsm'"),
        ({"domain_adaption": None}, "Unknown field of a scheme. Did you mean 'domain_adaptation'"),
        ({"peer_wieght": 1.0}, "Unknown field of a scheme. Did you mean 'peer_weight'"),
        ({"adversarial_loss": "divergense"}, "Unknown adversarial loss. Did you mean 'divergence'"),
        ({"crafting_mode": "trainign"}, "Unknown crafting mode. Did you mean 'training'"),
        ({"batch_norm": "auxilliary"}, "Unknown batch normalisation mode. Did you mean 'auxiliary'"),
        ({"batch_norm": {"a": "shard"}}, "Unknown batch normalisation mode. Did you mean 'shared'"),
        ({"attack": {"name": "fgms", "epsilon": 0.1}}, "Unknown attack. Did you mean 'fgsm'"),
        ({"domain_adaptation": "domain_adverserial"}, "Unknown domain adaptation. Did you mean 'domain_adversarial'"),
        ({"epsilon_schedule": "unifrom"}, "Unknown epsilon schedule. Did you mean 'uniform'"),
        ({"mixing": "image"}, "Unknown mixing. Did you mean 'images'"),
        ({"mixing": {"a": "steps"}}, "Unknown mixing. Did you mean 'steps'"),
        ({"crafting_mode": {"a": "training"}}, "Unknown crafting mode. Did you mean 'training'"),
        ({"source_weights": {"past": 0.0}, "mixing": "all"}, "source_weights must be above 0"),
        ({"source_weights": {"past": 2.0}}, "choose mixing='images' or 'all'"),
        ({"snapshots": 0}, "snapshots must be at least 1. Received: 0"),
        ({"peer_weight": (0.5, -1.0)}, "peer_weight must be non-negative"),
        ({"clean_weight": -1.0}, "clean_weight must be non-negative. Received: -1.0"),
        ({"adversarial_weight": float("nan")}, "adversarial_weight must be non-negative. Received: nan"),
        ({"peer_weight": -0.5}, "peer_weight must be non-negative. Received: -0.5"),
        ({"preset": "satm", "epsilon": 16}, r"did you mean 16/256 = 0.0625\? Received: epsilon=16"),
        ({"preset": "satm", "epsilon": -0.1}, r"Received: epsilon=-0.1"),
        (
            {"learns_from": ("others", "itself"), "attack": {"others": ATTACK}},
            r"need an attack.* 'a' learns from 'a'",
        ),
        ({"attack": {"others": ATTACK, "other": ATTACK}}, r"Unknown source in attack. Did you mean 'others'"),
        ({"clean_weight": {"a": 1.0, "bb": 1.0}}, r"Unknown network in clean_weight. Did you mean 'b'"),
        ({"clean_weight": {"a": 1.0}}, r"clean_weight must have a value for each network. Missing: b"),
        (
            {"learns_from": {"a": "b", "b": "nobody"}, "domain_adaptation": {"b": DomainAdversarial()}},
            r"networks that have a source. Received: b; networks that do: a",
        ),
        ({"batch_norm": {"o": "frozen"}}, r"networks that train. Received: o; networks that do: a, b"),
        ("ensemble", "'a' cannot learn from 'frozen': there is none"),
        ({"teachers": "others", "teacher_weight": 1.0}, "Teachers must never change"),
        ({"teachers": "before"}, "teachers and teacher_weight need each other"),
        ({"teacher_weight": 1.0}, "teachers and teacher_weight need each other"),
        ({"temperature": 0.5}, "temperature must be at least 1"),
        ({"null_share": 1.5}, r"null_share must be in \[0, 1\]"),
        ({"null_share": 0.5, "adversarial_loss": "divergence"}, "A null class needs the cross-entropy"),
        ({"null_share": 0.5, "attack": PGD(epsilon=1.0, norm="l2")}, "norm='linf'"),
        ({"crafted_once": -1}, r"crafted_once must be 0 or a number of copies. Received: -1"),
        (
            {"crafted_once": 2, "learns_from": "itself"},
            r"sources that never change: frozen networks, or 'before'. Received: a",
        ),
        ({"crafted_once": 2, "learns_from": ("before", "past_a")}, r"Received: past_a"),
        ({"crafted_once": 2, "learns_from": ("before", "sparring_a")}, r"Received: sparring_a"),
        ({"crafted_once": 2, "learns_from": "nobody"}, r"Received: no source"),
        ({"crafted_once": 2, "epsilon_schedule": "uniform"}, r"leave out crafted_once or epsilon_schedule"),
        (
            {"crafted_once": 2, "learns_from": "before", "attack": PGD(epsilon=1.0, norm="l2")},
            r"L-infinity.*Received: .* norm='l2'.* for 'before_b'",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_with_the_nearest_that_has(identifier, message):
    with pytest.raises(ValueError, match=message):
        Scheme.get(identifier).sources(["a", "b"])


def test_peers_of_a_network_alone():
    with pytest.raises(ValueError, match=r"at least two networks that train. Received: \['a'\]"):
        Scheme(learns_from="itself", peer_weight=1.0).sources(["a"])


def test_an_attack_for_each_source_by_its_name_before_its_relation():
    own, partner, old, special = (FGSM(epsilon=each / 100) for each in range(1, 5))
    scheme = Scheme(attack={"itself": own, "others": partner, "frozen": old, "c": special})
    assert scheme.attack_on("a", "a", trained=True) == own
    assert scheme.attack_on("b", "a", trained=True) == partner
    assert scheme.attack_on("o", "a", trained=False) == old
    assert scheme.attack_on("c", "a", trained=True) == special
    assert scheme.attack_on("c", "c", trained=True) == special


def test_epsilon_of_the_scheme_is_that_of_every_attack():
    scheme = Scheme(attack={"itself": PGD(epsilon=0.1, steps=3), "others": ATTACK}, epsilon=0.02)
    assert scheme.attack_on("a", "a", trained=True) == PGD(epsilon=0.02, steps=3)
    assert scheme.attack_on("b", "a", trained=True) == FGSM(epsilon=0.02)
    named = Scheme(attack={"itself": "fgsm", "others": {"name": "pgd", "epsilon": 0.1, "steps": 3}}, epsilon=0.02)
    assert named.attack_on("a", "a", trained=True) == FGSM(epsilon=0.02)
    assert named.attack_on("b", "a", trained=True) == PGD(epsilon=0.02, steps=3)


def test_no_attack_is_the_papers():
    assert Scheme().attack_on("b", "a", trained=True) == RandomisedStep(epsilon=16 / 256)
    assert Scheme(epsilon=0.1).attack_on("b", "a", trained=True) == RandomisedStep(epsilon=0.1)


def test_the_most_particular_description_of_a_source_goes_first():
    one, two, three = (FGSM(epsilon=each / 100) for each in range(1, 4))
    scheme = Scheme(attack={"before_itself": one, "before": two, "sparring": three}, mixing="all")
    assert scheme.attack_on("before_a", "a", trained=False) == one
    assert scheme.attack_on("before_b", "a", trained=False) == two
    assert scheme.attack_on("sparring_b", "sparring_b", trained=False) == three
    weighted = Scheme(mixing="all", source_weights={"before_others": 3.0, "before_c": 5.0})
    assert [weighted.weight_of(f"before_{name}", "a", trained=False) for name in "abc"] == [1.0, 3.0, 5.0]


def test_a_sequence_is_for_the_networks_in_their_order():
    scheme = Scheme.get("cat").by_name(["a", "b"])
    assert scheme.adversarial_loss == {"a": "divergence", "b": "cross_entropy"}
    assert scheme.terms_of("b")[:5] == (1 / 40, 1 / 40, "cross_entropy", 1 / 20, 19 / 20)
    assert scheme.terms_of("sparring_a") == Scheme().terms_of("any")
    with pytest.raises(ValueError, match=r"clean_weight has values for 2 networks. Received: a, b, c"):
        Scheme.get("cat").by_name(["a", "b", "c"])


def test_each_source_crafts_with_its_own_attack(make_network, images, labels):
    networks = {"a": make_network("a"), "b": make_network("b", width=4)}
    weak, strong = RandomisedStep(epsilon=0.01, alpha=0.0), RandomisedStep(epsilon=0.2, alpha=0.0)
    trainer = CoTraining(networks, learns_from="others", attack={"a": weak, "others": strong})
    crafted = trainer.craft(images, labels)
    sizes = {source: float(tf.reduce_max(tf.abs(each - images))) for source, each in crafted.items()}
    assert sizes == pytest.approx({"a": 0.01, "b": 0.2}, rel=1e-5)
