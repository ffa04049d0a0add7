"""Who learns from whom: the one question by which the training schemes differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from satm_tf.configurable import unknown_name

LearnsFrom = str | Iterable[str] | Mapping[str, str | Iterable[str]]


def _others(name: str, networks: list[str], frozen: list[str]) -> list[str]:
    # Beginning after oneself: in turn, every network is then the source of exactly one other.
    index = networks.index(name)
    return networks[index + 1 :] + networks[:index]


_WORDS: dict[str, Callable[[str, list[str], list[str]], list[str]]] = {
    "nobody": lambda name, networks, frozen: [],
    "itself": lambda name, networks, frozen: [name],
    "others": _others,
    "frozen": lambda name, networks, frozen: frozen,
}


def resolve_sources(
    learns_from: LearnsFrom, networks: Collection[str], frozen: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Names, for each network that trains, the networks whose adversarial examples it learns from.

    Args:
        learns_from: "others" (SATM), "itself" (standard adversarial training), "frozen" (ensemble adversarial
            training), "nobody" (fine-tuning), a name, or several of these; or a mapping that gives each network its
            own.
        networks: Names of the networks that train.
        frozen: Names of the networks that only craft.

    Returns:
        For each of `networks`, its sources in the order of their turns.

    Raises:
        ValueError: If a name is unknown, a network is left out, or a word stands for nobody without saying so.

    Example:
        >>> resolve_sources("others", ["a", "b", "c"])
        {'a': ('b', 'c'), 'b': ('c', 'a'), 'c': ('a', 'b')}
        >>> resolve_sources({"a": ["itself", "old"], "b": "nobody"}, ["a", "b"], frozen=["old"])
        {'a': ('a', 'old'), 'b': ()}
    """
    networks, frozen = list(networks), list(frozen)
    reserved = sorted({*networks, *frozen} & {*_WORDS})
    if reserved:
        raise ValueError(f"No network may be called {', '.join(_WORDS)}: these are words. Received: {reserved[0]!r}")
    if not isinstance(learns_from, Mapping):
        learns_from = dict.fromkeys(networks, learns_from if isinstance(learns_from, str) else tuple(learns_from))
    for name in learns_from:
        if name not in networks:
            raise unknown_name("network in learns_from", name, networks)
    missing = [name for name in networks if name not in learns_from]
    if missing:
        raise ValueError(f"learns_from must say for each network from whom it learns. Missing: {', '.join(missing)}")

    def expand(name: str, term: str) -> list[str]:
        if term in networks or term in frozen:
            return [term]
        if term not in _WORDS:
            raise unknown_name("source in learns_from", term, [*_WORDS, *networks, *frozen])
        sources = _WORDS[term](name, networks, frozen)
        if not sources and term != "nobody":
            raise ValueError(
                f"{name!r} cannot learn from {term!r}: there is none. Add a network, or use 'nobody'. "
                f"Received: networks={networks}, frozen={frozen}"
            )
        return sources

    sources = {}
    for name in networks:
        terms = learns_from[name]
        terms = [terms] if isinstance(terms, str) else terms
        sources[name] = tuple(dict.fromkeys(source for term in terms for source in expand(name, term)))
    return sources
