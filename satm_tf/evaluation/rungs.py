"""The ladder: how a source relates to a target, and so which attacker a figure is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from satm_tf.evaluation.names import UNSEEN, NetworkName


class Rung(NamedTuple):
    """A kind of attacker."""

    label: str  # what tables and charts call it
    who: str  # who can mount the attack


UNSEEN_RUNG, PUBLIC_WEIGHTS, START, DEFENDED = "unseen", "public_weights", "start", "defended"
SAME_SCHEME, TWIN, QUERIES = "same_scheme", "twin", "queries"
CLEAN_RUNG, PARTNER, WHITE_BOX = "clean", "partner", "white_box"

RUNGS = {
    UNSEEN_RUNG: Rung("unseen models", "anybody who trains another architecture on similar images"),
    PUBLIC_WEIGHTS: Rung("same public weights", "anybody who fine-tunes the published backbone on other images"),
    START: Rung("same starting weights", "anybody who has the network that the defence started from"),
    DEFENDED: Rung("defended unseen models", "anybody who trains another architecture adversarially"),
    SAME_SCHEME: Rung("same scheme", "anybody who trains other architectures by following the documentation"),
    TWIN: Rung("twin", "anybody who has architectures, images and scheme, and lacks only the weights"),
    QUERIES: Rung("queries", "anybody who can query the deployed model"),
}
"""The ladder from the weakest attacker to the strongest: none of them has the target's weights."""

BESIDE = {
    CLEAN_RUNG: Rung("clean", "nobody"),
    PARTNER: Rung("co-trained partner", "only you, unless a partner's weights leak"),
    WHITE_BOX: Rung("white box", "anybody who has the target's weights"),
}
"""What is measured in addition to the ladder."""


class Group(NamedTuple):
    """What is known of a group of sources."""

    rung: str  # one of `RUNGS`
    scheme: str | None = None  # the one scheme whose networks it attacks; None for all


_OF_THEMSELVES = {UNSEEN: Group(UNSEEN_RUNG), **{rung: Group(rung) for rung in RUNGS}}


def rung_of(source: str, target: str, groups: Mapping[str, Group] | None = None) -> str:
    """The rung of a pair of source and target.

    Args:
        source: The name of the source, `<group>/<network>` or `<scheme>/<network>`; empty for clean images, "queries"
            for query attacks, which have no source network.
        target: The name of the network that is measured.
        groups: The groups of sources, by name. "holdout" is on the rung of unseen models, and a group with the name of
            a rung on that rung, unless this says otherwise.

    Returns:
        "clean", a rung of `RUNGS`, "partner", "white_box", or an empty string for any other pair: a source
        of another scheme, or the starting weights of another network.

    Example:
        >>> rung_of("holdout/resnet", "satm/vgg"), rung_of("satm/resnet", "satm/vgg"), rung_of("start/vgg", "satm/vgg")
        ('unseen', 'partner', 'start')
    """
    if not source:
        return CLEAN_RUNG
    if source == target:
        return WHITE_BOX
    if source == QUERIES:
        return QUERIES
    by, of = NetworkName.parse(source), NetworkName.parse(target)
    group = {**_OF_THEMSELVES, **(groups or {})}.get(by.scheme)
    if group is None:
        return PARTNER if by.scheme and by.scheme == of.scheme else ""
    # The starting weights belong to one network.
    other = group.scheme not in (None, of.scheme) or (group.rung == START and by.network != of.network)
    return "" if other else group.rung


def rungs_of(sources: Iterable[str], targets: Iterable[str], groups: Mapping[str, Group] | None = None) -> list[str]:
    """The rung of each pair, as `rung_of` gives it."""
    return [rung_of(source, target, groups) for source, target in zip(sources, targets, strict=True)]
