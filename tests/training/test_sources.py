import pytest

from satm_tf.training import resolve_sources


@pytest.mark.parametrize(
    ("learns_from", "expected"),
    [
        ("others", {"a": ("b",), "b": ("a",)}),
        ("itself", {"a": ("a",), "b": ("b",)}),
        ("nobody", {"a": (), "b": ()}),
        ("frozen", {"a": ("old",), "b": ("old",)}),
        ({"a": ["itself", "old"], "b": "nobody"}, {"a": ("a", "old"), "b": ()}),
        ({"a": ["others", "b"], "b": "old"}, {"a": ("b",), "b": ("old",)}),
    ],
)
def test_words_and_names(learns_from, expected):
    assert resolve_sources(learns_from, ["a", "b"], ["old"]) == expected


@pytest.mark.parametrize(
    ("learns_from", "expected"),
    [
        ("before", ("before_b", "before_a")),
        ("before_itself", ("before_a",)),
        ("past_others", ("past_b",)),
        ("sparring", ("sparring_b", "sparring_a")),
        (["past_sparring_b", "itself"], ("past_sparring_b", "a")),
        (["before", "sparring"], ("before_b", "before_a", "sparring_b", "sparring_a")),
    ],
)
def test_networks_as_they_were_and_sparring_partners(learns_from, expected):
    sources = resolve_sources({"a": learns_from, "b": "nobody"}, ["a", "b"])
    assert sources.pop("a") == expected
    assert sources.pop("b") == ()
    wanted = [partner for partner in ("sparring_a", "sparring_b") if partner in str(expected)]
    assert sources == {partner: (partner,) for partner in wanted}, "each learns from itself"


def test_sparring_partners_of_other_kinds():
    assert resolve_sources("sparring", ["a"], sparring=["x", "y"])["a"] == ("sparring_x", "sparring_y")
    with pytest.raises(ValueError, match="'a' cannot learn from 'sparring_itself': there is none"):
        resolve_sources("sparring_itself", ["a"], sparring=["x"])


def test_in_turn_every_network_is_the_source_of_exactly_one_other():
    names = ["a", "b", "c", "d"]
    sources = resolve_sources("others", names)
    for turn in range(3):
        assert sorted(sources[name][turn] for name in names) == names
        assert all(sources[name][turn] != name for name in names)


@pytest.mark.parametrize(
    ("learns_from", "networks", "message"),
    [
        ("other", ["a", "b"], "Did you mean 'others'"),
        ("others", ["a"], "there is none"),
        ("frozen", ["a"], "there is none"),
        ({"a": "others"}, ["a", "b"], "Missing: b"),
        ({"a": "b", "b": "a", "z": "a"}, ["a", "b"], "Unknown network in learns_from"),
        ({"a": "nobod", "b": "a"}, ["a", "b"], "Did you mean 'nobody'"),
        ("sparing", ["a", "b"], "Did you mean 'sparring'"),
        ("before_c", ["a", "b"], "Did you mean 'before_"),
        ("others", ["a", "past_b"], "Received: 'past_b'"),
    ],
)
def test_bad_input(learns_from, networks, message):
    with pytest.raises(ValueError, match=message):
        resolve_sources(learns_from, networks)
