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
    ],
)
def test_bad_input(learns_from, networks, message):
    with pytest.raises(ValueError, match=message):
        resolve_sources(learns_from, networks)
