"""Who learns from whom: the one question by which the training schemes differ."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from satm_tf.configurable import unknown_name

LearnsFrom = str | Iterable[str] | Mapping[str, str | Iterable[str]]

KINDS = ("before", "past", "sparring")
"""The kinds of sources other than networks that train and frozen ones: see `resolve_sources`."""
_WHO = ("itself", "others")
WORDS = ("nobody", *_WHO, "frozen", *KINDS, *(f"{kind}_{who}" for kind in KINDS for who in _WHO))
"""The words that `resolve_sources` accepts in addition to the names of networks."""


def split(source: str) -> tuple[str, str]:
    """The kind of a source and the rest of its name: `("before", "a")` of "before_a", `("", "a")` of "a"."""
    for kind in KINDS:
        if source == kind or source.startswith(f"{kind}_"):
            return kind, source[len(kind) + 1 :]
    return "", source


def descriptions(source: str, learner: str, trained: bool) -> tuple[str, ...]:
    """The keys under which a mapping may describe a source for one of its learners, the most specific first.

    Args:
        source: Name of the source.
        learner: Name of the network that learns from it.
        trained: Whether the source is one of the networks that train, and not a frozen one.
    """
    kind, name = split(source)
    if not kind:
        return source, "itself" if source == learner else "others" if trained else "frozen"
    if source == learner:  # A sparring partner's own examples.
        return source, kind, "itself"
    return source, f"{kind}_{'itself' if name == learner else 'others'}", kind


def resolve_sources(
    learns_from: LearnsFrom,
    networks: Collection[str],
    frozen: Collection[str] = (),
    sparring: Collection[str] | None = None,
    *,
    field: str = "learns_from",
) -> dict[str, tuple[str, ...]]:
    """Names, for each network that trains, the networks whose adversarial examples (or answers) it learns from.

    | | itself | the others | both | one of them |
    | --- | --- | --- | --- | --- |
    | as they are at each step | `itself` | `others` | | `b` |
    | as they were when training began | `before_itself` | `before_others` | `before` | `before_b` |
    | as they were at some of the last steps | `past_itself` | `past_others` | `past` | `past_b` |
    | robust partners that train alongside them | `sparring_itself` | `sparring_others` | `sparring` | `sparring_b` |
    | other networks, never changed | | | `frozen` | `old` |

    `others` is SATM; `itself` standard adversarial training; `frozen` ensemble adversarial training, and PubDef;
    `nobody` fine-tuning; `before` and `sparring` together combine who crafts (others, itself) with how robust it is
    (undefended, robust).

    Args:
        learns_from: A word of the table, a name, or several of these; or a mapping with these for each network.
        networks: Names of the networks that train.
        frozen: Names of the networks that only craft.
        sparring: Names of the sparring partners, without `sparring_`; None means one for each network.
        field: What errors call `learns_from`.

    Returns:
        For each of `networks`, its sources in the order of their turns. Then the same for each sparring partner that
        is among these: it learns from itself.

    Raises:
        ValueError: If a name is unknown, a network is left out, or a word refers to no network.

    Example:
        >>> resolve_sources("others", ["a", "b", "c"])
        {'a': ('b', 'c'), 'b': ('c', 'a'), 'c': ('a', 'b')}
        >>> resolve_sources({"a": ["itself", "old"], "b": "nobody"}, ["a", "b"], frozen=["old"])
        {'a': ('a', 'old'), 'b': ()}
        >>> resolve_sources("sparring", ["a", "b"])["a"]
        ('sparring_b', 'sparring_a')
    """
    networks, frozen = list(networks), list(frozen)
    partners = networks if sparring is None else list(sparring)
    reserved = sorted(name for name in {*networks, *frozen} if name in WORDS or split(name)[0])
    if reserved:
        raise ValueError(
            f"No network may be called {', '.join(WORDS)}, or start with {', '.join(f'{kind}_' for kind in KINDS)}: "
            f"these are reserved words. Received: {reserved[0]!r}"
        )
    if not isinstance(learns_from, Mapping):
        learns_from = dict.fromkeys(networks, learns_from if isinstance(learns_from, str) else tuple(learns_from))
    for name in learns_from:
        if name not in networks:
            raise unknown_name(f"network in {field}", name, networks)
    missing = [name for name in networks if name not in learns_from]
    if missing:
        raise ValueError(f"{field} must name someone, or nobody, for each network. Missing: {', '.join(missing)}")

    def expand(name: str, term: str) -> list[str]:
        if term in frozen:
            return [term]
        kind, who = split(term)
        group = partners if kind == "sparring" else networks
        snapshots = [f"sparring_{partner}" for partner in partners] if kind == "past" else []
        if who in group or who in snapshots:
            return [term]
        if term not in WORDS:
            names = [*WORDS, *networks, *frozen, *(f"{kind}_{each}" for each in (*group, *snapshots) if kind)]
            raise unknown_name(f"source in {field}", term, names)
        # Starting after itself: in each turn, every network is the source of exactly one other.
        index = group.index(name) if name in group else -1
        others, itself = group[index + 1 :] + group[: max(index, 0)], group[index : index + 1] if index >= 0 else []
        found = {"nobody": [], "frozen": frozen, "itself": itself, "others": others, "": [*others, *itself]}[who]
        if not found and term != "nobody":
            raise ValueError(
                f"{name!r} cannot learn from {term!r}: there is none. Add a network, or use 'nobody'. "
                f"Received: networks={networks}, frozen={frozen}"
            )
        return [f"{kind}_{each}" if kind else each for each in found]

    sources: dict[str, tuple[str, ...]] = {}
    for name in networks:
        terms = learns_from[name]
        terms = [terms] if isinstance(terms, str) else terms
        sources[name] = tuple(dict.fromkeys(source for term in terms for source in expand(name, term)))
    wanted = {source.removeprefix("past_") for its in sources.values() for source in its}
    for partner in partners:
        if (own := f"sparring_{partner}") in wanted:
            sources[own] = (own,)
    return sources
