"""Training schemes as data: who learns from whom, from which examples, and how the parts of the loss are weighted."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from satm_tf.attacks import KLPGD, PGD, RSFGSM, Attack, IterativeLL, RandomisedStep, StepLL
from satm_tf.configurable import Configurable, unknown_name
from satm_tf.training.domain import DomainAdaptation, DomainAdversarial, UnifiedEmbedding
from satm_tf.training.epsilon import EpsilonSchedule
from satm_tf.training.passes import BATCH_NORM_MODES, BatchNormMode
from satm_tf.training.sources import LearnsFrom, resolve_sources

# What is made into an attack, a schedule or an adaptation: itself, its name, or a mapping with its name and options.
# Instead of one attack, adaptation or batch normalisation mode for all, there may be a mapping from names to them.
AttackLike = Attack | str | Mapping[str, Any]
EpsilonScheduleLike = EpsilonSchedule | str | Mapping[str, Any]
DomainAdaptationLike = DomainAdaptation | str | Mapping[str, Any]
BatchNormLike = BatchNormMode | Mapping[str, BatchNormMode]
AdversarialLoss = Literal["cross_entropy", "divergence"]
CraftingMode = Literal["inference", "training"]

ADVERSARIAL_LOSSES: tuple[AdversarialLoss, ...] = get_args(AdversarialLoss)
CRAFTING_MODES: tuple[CraftingMode, ...] = get_args(CraftingMode)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Everything in which the ways of training differ.

    With x the clean batch and x' a batch of adversarial twins, a network's loss is `clean_weight * CE(x)
    + adversarial_weight * (CE(x') or KL(x || x')) + peer_weight * KL(peers on x' || x') + domain adaptation`.

    Where epsilon is set in several places, the one given to `CoTraining` wins over the scheme's, and the scheme's over
    that of each attack; `epsilon_schedule` takes its share of the winner.

    Attributes:
        learns_from: Whose adversarial examples each network learns from, as `resolve_sources` takes it.
        attack: What the sources craft with; or one for each, by the source's name or by "itself", "others" (another
            network that trains) and "frozen". An attack may be given by its name, or as a mapping with its name and
            options. None is the paper's, R+Step-LL at 16/256.
        all_sources: Whether a step uses every source of a network. If not, sources take turns, one a step, so that half
            of what a network sees is clean, at the same cost whatever their number. The adversarial parts of the loss
            are means over the sources of the step in either case.
        epsilon: Replaces the epsilon of every attack; None keeps theirs.
        epsilon_schedule: Which share of epsilon a training step uses; None, or "none", always uses all of it.
        crafting_mode: "inference", or "training": with dropout and batch statistics, which crafting leaves unchanged.
            Frozen sources are in inference mode in either case.
        clean_weight: Weight of the cross-entropy of clean images, non-negative.
        adversarial_weight: r_adv, weight of the adversarial loss, non-negative.
        adversarial_loss: "cross_entropy" with the labels, or "divergence": how far the answers to adversarial images
            are from those to the clean ones, `KL(p(x) || p(x'))`, as in TRADES, with a gradient through both answers.
        peer_weight: Weight of `KL(p_peer(x') || p(x'))`, the mean over the other networks that train, which are
            constants in it; 0 leaves it out.
        domain_adaptation: One for every network that has a source, or a mapping from the names of some of them; each
            may be given by its name, or as a mapping with its name and options. None, or "none", does without.
        batch_norm: How clean and adversarial images share batch normalisation, for all networks or by name: "shared"
            (one pass together), "separate" (a pass each), "frozen" (moving statistics, which stay) or "auxiliary" (a
            second set of scale, shift and statistics for adversarial images, AdvProp; only the first set is kept).
            Unlike in AdvProp, sources craft with the first set, which is what an attacker will meet.

    Raises:
        ValueError: If a weight is negative, a name unknown, or an attack without an epsilon.

    Example:
        >>> CoTraining(networks, "trades", epsilon=8 / 256)
        >>> CoTraining(networks, Scheme(learns_from=("itself", "others"), attack=PGD(epsilon=8 / 256)))

    Source:
        Algorithm 1 of Liao (SATM); TRADES: Zhang et al., ICML 2019; peers: Liu et al., "Mutual Adversarial Training",
        2021; AdvProp: Xie et al., "Adversarial Examples Improve Image Recognition", CVPR 2020.
    """

    learns_from: LearnsFrom = "others"
    attack: AttackLike | None = None
    all_sources: bool = False
    epsilon: float | None = None
    epsilon_schedule: EpsilonScheduleLike | None = None
    crafting_mode: CraftingMode = "inference"
    clean_weight: float = 1.0
    adversarial_weight: float = 1.0
    adversarial_loss: AdversarialLoss = "cross_entropy"
    peer_weight: float = 0.0
    domain_adaptation: DomainAdaptationLike | None = None
    batch_norm: BatchNormLike = "shared"

    def __post_init__(self) -> None:
        epsilon = {} if self.epsilon is None else {"epsilon": self.epsilon}
        for field, made in (
            ("attack", _made(Attack, self.attack, **epsilon)),
            ("epsilon_schedule", _made(EpsilonSchedule, self.epsilon_schedule)),
            ("domain_adaptation", _made(DomainAdaptation, self.domain_adaptation)),
        ):
            object.__setattr__(self, field, made)
        for field in ("clean_weight", "adversarial_weight", "peer_weight"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field} must be non-negative. Received: {getattr(self, field)}")
        modes = self.batch_norm.values() if isinstance(self.batch_norm, Mapping) else [self.batch_norm]
        for kind, values, known in (
            ("adversarial loss", [self.adversarial_loss], ADVERSARIAL_LOSSES),
            ("crafting mode", [self.crafting_mode], CRAFTING_MODES),
            ("batch normalisation mode", modes, BATCH_NORM_MODES),
        ):
            for value in values:
                if value not in known:
                    raise unknown_name(kind, value, known)

    @classmethod
    def get(cls, identifier: str | Mapping[str, Any] | Scheme | None, **fields: Any) -> Scheme:
        """A scheme from the name of a preset, or from a mapping of fields, with or without a `preset` to start from.

        Args:
            identifier: Name, mapping or scheme to start from; None is the default scheme.
            **fields: Fields that replace its own.

        Raises:
            ValueError: If the preset or a field is unknown; the message gives the nearest.
        """
        start: Any = identifier
        if isinstance(identifier, Mapping):
            fields = {**identifier, **fields}
            start = fields.pop("preset", None)
        if isinstance(start, str):
            if start not in SCHEMES:
                raise unknown_name("scheme", start, SCHEMES)
            start = SCHEMES[start]
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise unknown_name("field of a scheme", name, known)
        return dataclasses.replace(start or cls(), **fields)

    def sources(self, networks: Collection[str], frozen: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
        """The sources of each network, as `resolve_sources` gives them, once all names in the scheme have been checked.

        Args:
            networks: Names of the networks that train.
            frozen: Names of the networks that only craft.

        Raises:
            ValueError: If the scheme names a network or source that does not exist, lacks an attack, or needs peers.
        """
        sources = resolve_sources(self.learns_from, networks, frozen)
        words = ["itself", "others", "frozen", *networks, *frozen]
        for key in self.attack if isinstance(self.attack, Mapping) else ():
            if key not in words:
                raise unknown_name("source in attack", key, words)
        for name, its in sources.items():
            for source in its:
                self.attack_on(source, name, trained=source in networks)
        if self.peer_weight and len(networks) < 2:
            raise ValueError(f"peer_weight needs at least two networks that train. Received: {list(networks)}")
        self.domain_adaptation_of(sources)
        self.batch_norm_of(networks)
        return sources

    def domain_adaptation_of(self, sources: Mapping[str, Collection[str]]) -> dict[str, DomainAdaptation]:
        """The domain adaptation of each network that has one, from the sources of all."""
        learners = [name for name, its in sources.items() if its]
        return _by_network("domain_adaptation", self.domain_adaptation, learners, "have a source")

    def batch_norm_of(self, networks: Collection[str]) -> dict[str, str]:
        """The batch normalisation mode of each network that has one."""
        return _by_network("batch_norm", self.batch_norm, networks, "train")

    def attack_on(self, source: str, learner: str, trained: bool) -> Attack:
        """The attack with which a source crafts for a learner.

        Args:
            source: Name of the source.
            learner: Name of the network that learns from it.
            trained: Whether the source trains too.

        Raises:
            ValueError: If there is none, or if the scheme's epsilon is out of its range.
        """
        relation = "itself" if source == learner else "others" if trained else "frozen"
        attack: Any = _PAPERS_ATTACK if self.attack is None else self.attack
        if isinstance(attack, Mapping):
            attack = attack.get(source, attack.get(relation))
        if attack is None:
            raise ValueError(
                "An attack is needed where networks learn from adversarial examples: "
                f"{learner!r} learns from {source!r}. Received: attack={self.attack}"
            )
        return attack if self.epsilon is None else dataclasses.replace(attack, epsilon=self.epsilon)


def _by_network(field: str, value: Any, names: Collection[str], which: str) -> dict[str, Any]:
    """A field of the scheme by network, from one for all or a mapping of its own."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value) if value else {}
    others = sorted(set(value) - set(names))
    if others:
        raise ValueError(
            f"{field} is for networks that {which}. "
            f"Received: {', '.join(others)}; networks that do: {', '.join(names) or 'none'}"
        )
    return {name: each for name, each in value.items() if each is not None}


def _made(family: type[Configurable], value: Any, **options: Any) -> Any:
    """A member of the family from its description, or a mapping of members from one of descriptions."""
    if value is None or (value == "none" and family is not Attack):
        return None
    if isinstance(value, Mapping) and "name" not in value:
        return {key: _made(family, each, **options) for key, each in value.items()}
    try:
        return family.get(value, **options)
    except TypeError as error:
        if "epsilon" not in str(error):
            raise
        raise ValueError(f"This {family.kind} needs an epsilon; give `epsilon`. Received: {value!r}") from None


_EPSILON = 16 / 256  # the paper's

_PAPERS_ATTACK = RandomisedStep(epsilon=_EPSILON)

_PGD = PGD(epsilon=_EPSILON, steps=10)

SCHEMES: dict[str, Scheme] = {
    "undefended": Scheme(learns_from="nobody"),
    "adversarial": Scheme(learns_from="itself"),
    "pgd": Scheme(learns_from="itself", attack=_PGD, clean_weight=0.0),
    "trades": Scheme(
        learns_from="itself", attack=KLPGD(epsilon=_EPSILON), adversarial_loss="divergence", adversarial_weight=6.0
    ),
    "ensemble": Scheme(learns_from="frozen"),
    "ensemble_with_itself": Scheme(learns_from=("itself", "frozen")),
    "cascade": Scheme(
        learns_from=("itself", "frozen"),
        attack={"itself": StepLL(epsilon=_EPSILON), "frozen": IterativeLL(epsilon=_EPSILON)},
        domain_adaptation=UnifiedEmbedding(),
    ),
    "satm": Scheme(learns_from="others", domain_adaptation=DomainAdversarial()),
    "satm_all_sources": Scheme(
        learns_from="others", domain_adaptation=DomainAdversarial(domains="sources"), all_sources=True
    ),
    "satm_white_box": Scheme(learns_from=("others", "itself"), domain_adaptation=DomainAdversarial()),
    "mutual": Scheme(
        learns_from=("itself", "others"), attack=_PGD, all_sources=True, clean_weight=0.0, peer_weight=1.0
    ),
    "collaborative": Scheme(learns_from="itself", attack=_PGD, clean_weight=0.0, peer_weight=1.0),
    "recommended": Scheme(learns_from=("others", "itself"), attack=RSFGSM(epsilon=_EPSILON)),
}
"""The presets: the paper's schemes, its baselines, later relatives, and the one that docs/results recommends against
attackers without access to the network. Epsilon is the paper's 16/256."""
