"""Groups of an attacker's models in a configuration, and how each is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from satm_tf.configurable import look_up
from satm_tf.evaluation.rungs import DEFENDED, QUERIES, RUNGS, SAME_SCHEME, START, TWIN
from satm_tf.experiment.run_folder import FINE_TUNE
from satm_tf.experiment.sections import NetworkConfig, SchemeConfig
from satm_tf.training import Scheme
from satm_tf.training.sources import KINDS

SAME = "same"
_NEEDS_SCHEME = (DEFENDED, SAME_SCHEME, TWIN)


@dataclass(frozen=True)
class SurrogateConfig:
    """A group of an attacker's models. They attack at the end, and no scheme ever learns from them.

    Attributes:
        rung: Their rung on the ladder: unseen, public_weights, start, defended, same_scheme or twin.
        networks: The models, by name. null takes the experiment's own fine-tuned networks, which costs no training: its
            holdouts, or with `start: same` the networks that are defended.
        scheme: How they are trained after fine-tuning. same trains them once for each scheme, as that scheme trains its
            networks; a mapping describes a scheme, as under schemes; null does not train them further.
        against: The schemes that `same` applies to; null is all.
        images: What they are trained on. target is the defence's training images; share is the data.surrogate_share of
            the training images, which the defence never sees.
        start: own is random weights, or the published ones that a network names; same is the fine-tuned weights that
            the defence starts from.
        seed: Their seed; null is the experiment's, with other random numbers than any scheme's.
    """

    rung: str
    networks: dict[str, NetworkConfig] | None = None
    scheme: dict[str, Any] | Literal["same"] | None = None
    against: list[str] | None = None
    images: Literal["target", "share"] = "target"
    start: Literal["own", "same"] = "own"
    seed: int | None = None

    def check(self, path: str, networks: Collection[str], schemes: Mapping[str, Any]) -> None:
        """Checks the fields for an experiment's networks and schemes; `path` is the group's in the configuration.

        Raises:
            ValueError: If something is unknown, or the models do not fit their rung.
        """
        look_up(f"rung in {path}", self.rung, {rung: rung for rung in RUNGS if rung != QUERIES})
        for scheme in self.against or ():
            look_up(f"scheme in {path}.against", scheme, schemes)
        wrong = None
        if (self.rung in _NEEDS_SCHEME) != (self.scheme is not None):
            wrong = f"the rung {self.rung} is of models with {'a' if self.rung in _NEEDS_SCHEME else 'no'} scheme"
        elif self.rung in (SAME_SCHEME, TWIN) and self.scheme != SAME:
            wrong = f"the rung {self.rung} is of models that are trained as their target: scheme must be same"
        elif self.against is not None and self.scheme != SAME:
            wrong = "against chooses among the schemes that `same` stands for"
        elif (self.rung == START) != (self.start == SAME and self.networks is None and self.scheme is None):
            wrong = "the rung start takes `start: same` and nothing else, and only that rung does"
        elif self.images == "share" and (self.networks is None or self.start == SAME):
            wrong = "models trained on other images need networks and a start of their own"
        elif self.networks is not None and self.start == SAME and set(self.networks) - set(networks):
            wrong = "with `start: same`, networks are some of the experiment's"
        elif self.rung == SAME_SCHEME and (self.start == SAME or set(self.networks or ()) & set(networks)):
            wrong = "a target's own architectures, and with them its partners', are the rung twin"
        elif self.rung == TWIN and set(self.networks or ()) != set(networks):
            wrong = f"a twin has the architectures of its target, {', '.join(networks)}"
        if wrong:
            raise ValueError(f"The fields of {path} contradict each other: {wrong}. Received: {self}")


class Surrogates(NamedTuple):
    """A trained group: one in all, or one for each scheme.

    Attributes:
        group: Its name in the configuration.
        described: Its configuration.
        networks: Its models.
        target: The one scheme that it attacks; None for all.
        scheme: How it is trained after fine-tuning; None if it is not.
    """

    group: str
    described: SurrogateConfig
    networks: tuple[str, ...]
    target: str | None = None
    scheme: SchemeConfig | None = None


def expand(
    groups: Mapping[str, SurrogateConfig],
    *,
    networks: Sequence[str],
    holdouts: Sequence[str],
    schemes: Mapping[str, SchemeConfig],
) -> dict[str, Surrogates]:
    """The groups that are trained, by the name used in results: `<group>`, or `<group>.<scheme>`.

    Raises:
        ValueError: As `SurrogateConfig.check` does, and if a group cannot be trained as a scheme is.
    """
    found = {}
    for group, described in groups.items():
        described.check(f"surrogates.{group}", networks, schemes)
        own = tuple(described.networks or (networks if described.start == SAME else holdouts))
        if not own:
            raise ValueError(f"surrogates.{group} uses the holdouts, but there are none; give it networks.")
        if not isinstance(described.scheme, str):
            scheme = None if described.scheme is None else SchemeConfig(**{**described.scheme, "networks": list(own)})
            found[group] = Surrogates(group, described, own, None, scheme)
            continue
        for target in described.against or schemes:
            learners = list(schemes[target].networks or networks)
            if len(own) != len(learners):
                raise ValueError(
                    f"surrogates.{group} replaces the networks of {target} one for one, and needs the same number: "
                    f"{len(learners)}. Received: {', '.join(own)}"
                )
            scheme = _in_the_places(schemes[target], dict(zip(learners, own, strict=True)), group)
            found[f"{group}.{target}"] = Surrogates(group, described, own, target, scheme)
    return found


def _in_the_places(scheme: SchemeConfig, names: Mapping[str, str], group: str) -> SchemeConfig:
    """A scheme with its networks replaced by others, and its earlier schemes by the group's."""
    origins = {origin: f"{group}.{origin}" for origin in (scheme.starts_from, *scheme.frozen_origins) if origin}
    kinds = ["", *(f"{kind}_" for kind in KINDS)]
    before = {f"{kind}{of}" for kind in kinds for of in ("frozen_", *kinds)}
    renamed = {
        **{f"{words}{old}": f"{words}{new}" for words in before for old, new in names.items()},
        **{
            f"{origin}/{old}": f"{origins.get(origin, origin)}/{new}"
            for origin in (FINE_TUNE, *origins)
            for old, new in names.items()
        },
    }

    def rename(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {renamed.get(key, key): rename(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [rename(each) for each in value]
        return renamed.get(value, value) if isinstance(value, str) else value

    changed: dict[str, Any] = {each.name: rename(getattr(scheme, each.name)) for each in dataclasses.fields(Scheme)}
    for each in ("starts_from", "frozen_from"):
        given = getattr(scheme, each)
        changed[each] = [origins.get(one, one) for one in given] if isinstance(given, list) else origins.get(given)
    return dataclasses.replace(scheme, networks=list(names.values()), sparring=None, **changed)
