import pytest

from satm_tf.evaluation.names import NetworkName


@pytest.mark.parametrize(
    ("text", "scheme", "network", "unseen"),
    [
        ("satm/compact_vgg", "satm", "compact_vgg", False),
        ("holdout/compact_densenet", "holdout", "compact_densenet", True),
        ("mine.keras", "", "mine.keras", False),
        ("a/b/c", "", "a/b/c", False),
    ],
)
def test_a_name_is_scheme_and_network(text, scheme, network, unseen):
    name = NetworkName.parse(text)
    assert (name.scheme, name.network, name.unseen, str(name)) == (scheme, network, unseen, text)
