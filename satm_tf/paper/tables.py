"""The paper's seven tables as data: the networks, examples, epsilons and printed figures of every entry.

Names are those of the presets `paper` and `small`: `<scheme>/<network>`, where the scheme "before" is a network that
was only fine-tuned, and "holdout" an unseen model. "{scheme}" stands for the entry's scheme.

Source:
    Tables 1 to 7 of Liao (SATM).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

VGG, RESNET = "vgg16_face", "resnet50_face"
PARTNER = {VGG: RESNET, RESNET: VGG}

READINGS = {"least_likely": "r+step_ll", "true": "r+fgsm"}
"""The two readings of R+Step-LL by the label that its gradient uses, and the presets' attack for each.

A scheme that trains with R+Step-LL exists once for each, as `<scheme>_<reading>`.
"""


SETTLED: Mapping[str, str] = {
    "reading": "R+Step-LL is named after the least likely class, but Eq. 3 and Algorithm 1 print y_true. Both are "
    "shown, in training and in the attack: `least_likely` descends toward the least likely class, `true` ascends from "
    "the true one, as printed.",
    "epsilon": "Images are in [0, 1]; 16/256 is 0.0625.",
    "clipping": "Every adversarial image is clipped to [0, 1] and to the ball of epsilon; the paper is silent.",
    "alpha": "alpha is epsilon / 2, and the random step alpha * sign(N(0, I)).",
    "crafting": "Examples are crafted in inference mode.",
    "one_off": "One-off accuracy as in Eq. 4: the true group or a neighbouring one.",
    "folds": "Adience's own folds: one to test on, four to learn from, of which a tenth of the subjects is for "
    "validation.",
    "clean_share": "A step uses a clean batch and an adversarial one of the same size, r_adv = 1.",
    "batch_norm": "Clean and adversarial images share batch statistics, in one pass.",
    "optimizer": 'At full size "e^-5" is 1e-5, SGD with momentum 0.9, batches of 8, 10,000 iterations. The small '
    "scale has its own, in its configuration.",
    "adaptation": "Domain adaptation, where the paper is silent: weight 0.1, Ganin's schedule, hidden width 256, on "
    "the features before the classification layer. `satm_without_adaptation` goes without, as do ensemble and pgd.",
    "stopping": "Early stopping, if any, on the validation images' sum of losses; never on the test fold.",
    "before": '"before" is the network as it was fine-tuned, from which every scheme starts.',
    "controls": "Rows without a printed figure are ours: `clean` trains on as long on clean images alone, `pgd` on "
    "clean images and each network's own PGD examples (from the true class, in both readings), on the faces of the "
    "small scale for 8 epochs where the others take 3, without which the networks end near chance.",
    "leaking": "Where adversarial images are classified better than clean ones, the pair may have encoded the label "
    "in the perturbations; such cells are listed below the table.",
    "holdout_epsilon": "The paper takes 16/256, but 32/256 for InceptionResNetV2; both epsilons are measured for both.",
    "ensemble": "As in the paper's comparison: each network learns from the fine-tuned other one, frozen, and not from "
    "itself.",
    "digits": "The paper names structures A and B and an average over black-box attacks, no epsilon. Taken: A trained "
    "with B; C and D as unseen models; Tramèr et al.'s 0.3 at full size, 0.1 at the small scale.",
    "curves": "The paper's captions name clean and adversarial rates of VGG16-Face; drawn with and without domain "
    "adaptation. The adversarial images are the partner's, as it was at that epoch.",
}
"""The points that the paper leaves open, or on which it contradicts itself, and how each is settled here."""


@dataclass(frozen=True)
class Entry:
    """One figure of a table.

    Attributes:
        scheme: How the networks were trained.
        target: The network that is measured.
        sources: The networks whose examples it is shown, averaged; none means clean images.
        epsilon: In units of the table's epsilon; 0 for clean images.
        rate: The accuracy as printed, in percent; None if the paper has no such entry.
        one_off: The one-off accuracy as printed.
    """

    scheme: str
    target: str
    sources: tuple[str, ...] = ()
    epsilon: float = 1.0
    rate: float | None = None
    one_off: float | None = None

    @property
    def place(self) -> tuple[str, tuple[str, ...], float]:
        """The common part of entries that differ only in their scheme."""
        return self.target, self.sources, self.epsilon


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: The title.
        entries: Its figures.
        experiment: Which of a scale's two configurations it belongs to: "faces" or "digits".
        epsilon: The unit of the entries' epsilon; None is that of the attack in training.
        against: The schemes that every other one is compared with.
        settled: The open points of the paper that it depends on, by their names in `SETTLED`.
        error: Whether errors are shown instead of accuracies, as printed.
        quoted: The part of it that is only quoted, in words.
    """

    title: str
    entries: tuple[Entry, ...]
    experiment: str = "faces"
    epsilon: float | None = None
    against: tuple[str, ...] = ()
    settled: tuple[str, ...] = ()
    error: bool = False
    quoted: str = ""


_SCHEMES = ("before", "clean", "pgd", "ensemble", "satm", "satm_without_adaptation")
_Printed = Mapping[Any, tuple[float | None, ...]]
_NONE = (None, None)


def _own(network: str) -> str:
    return f"{{scheme}}/{network}"


def _pair(printed: _Printed, place: Callable[[str], tuple[str, tuple[str, ...], float]]) -> tuple[Entry, ...]:
    """The entries of both networks under every scheme, each at the place that belongs to the network."""
    return tuple(
        Entry(scheme, *place(network), *printed.get((network, scheme), _NONE))
        for network in PARTNER
        for scheme in _SCHEMES
    )


# The paper used twice the epsilon for InceptionResNetV2, because the usual one hardly harmed any network; both are
# measured.
_HOLDOUTS = {"resnet101_img": 1.0, "inception_resnet_v2": 2.0}


def _holdouts(printed: _Printed, networks: tuple[str, ...], schemes: tuple[str, ...]) -> tuple[Entry, ...]:
    return tuple(
        Entry(
            scheme,
            _own(network),
            (f"holdout/{holdout}",),
            epsilon,
            *(printed.get((network, holdout, scheme), _NONE) if epsilon == _HOLDOUTS[holdout] else _NONE),
        )
        for holdout in _HOLDOUTS
        for network in networks
        for epsilon in (1.0, 2.0)
        for scheme in schemes
    )


_COMMON = ("reading", "epsilon", "clipping", "alpha", "crafting", "one_off", "folds")
_TRAINED = ("clean_share", "batch_norm", "optimizer", "adaptation", "stopping", "before", "controls")

_TABLE_1 = {VGG: (3.95, 4.30, 6.97, 12.13, 56.73), RESNET: (4.29, 8.79, 10.65, 21.8, 59.08)}
_TABLE_5 = {
    (VGG, "resnet101_img", "before"): (31.29, 62.61),
    (VGG, "resnet101_img", "ensemble"): (35.87, 68.04),
    (VGG, "resnet101_img", "satm"): (37.40, 72.16),
    (RESNET, "resnet101_img", "before"): (22.59, 47.57),
    (RESNET, "resnet101_img", "ensemble"): (25.84, 54.62),
    (RESNET, "resnet101_img", "satm"): (29.19, 58.27),
    (VGG, "inception_resnet_v2", "before"): (37.74, 62.48),
    (VGG, "inception_resnet_v2", "ensemble"): (39.61, 66.31),
    (VGG, "inception_resnet_v2", "satm"): (42.59, 67.23),
    (RESNET, "inception_resnet_v2", "before"): (40.23, 71.09),
    (RESNET, "inception_resnet_v2", "ensemble"): (43.12, 78.62),
    (RESNET, "inception_resnet_v2", "satm"): (48.26, 80.63),
}
_TABLE_6 = {
    **{key: value for key, value in _TABLE_5.items() if key[0] == RESNET and key[2] == "satm"},
    (RESNET, "resnet101_img", "satm_with_resnet50_img"): (31.61, 61.94),
    (RESNET, "inception_resnet_v2", "satm_with_resnet50_img"): (45.62, 77.54),
}
_UNSEEN_BY_DIGITS = ("holdout/structure_c", "holdout/structure_d")

TABLES: Mapping[int, Table] = {
    1: Table(
        "White-box attacks (R+Step-LL) on fine-tuned networks, at several epsilons",
        tuple(
            Entry("before", _own(network), (_own(network),) if epsilon else (), epsilon, rate)
            for network, rates in _TABLE_1.items()
            for epsilon, rate in zip((32.0, 16.0, 8.0, 4.0, 0.0), rates, strict=True)
        ),
        epsilon=1 / 256,
        settled=_COMMON,
    ),
    2: Table(
        "White-box attacks before and after",
        _pair(
            {
                (VGG, "before"): (4.30, 13.90),
                (VGG, "satm"): (7.22, 21.43),
                (RESNET, "before"): (8.79, 26.30),
                (RESNET, "satm"): (12.56, 29.89),
            },
            lambda network: (_own(network), (_own(network),), 1.0),
        ),
        against=("before",),
        settled=_COMMON + _TRAINED,
    ),
    3: Table(
        "Strength of the networks' own examples, shown to an undefended InceptionV3",
        _pair(
            {
                (VGG, "before"): (14.49, 45.01),
                (VGG, "satm"): (14.32, 47.60),
                (RESNET, "before"): (23.03, 58.81),
                (RESNET, "satm"): (19.67, 53.99),
            },
            lambda network: ("holdout/inception_v3", (_own(network),), 1.0),
        ),
        against=("before",),
        settled=_COMMON + _TRAINED,
    ),
    4: Table(
        "Black-box attacks between the pair, before and after, and clean images",
        _pair(
            {
                (VGG, "before"): (35.39, 66.99),
                (VGG, "satm"): (52.40, 88.55),
                (RESNET, "before"): (16.25, 36.16),
                (RESNET, "satm"): (43.25, 76.11),
            },
            lambda network: (_own(network), (_own(PARTNER[network]),), 1.0),
        )
        + _pair(
            {
                (VGG, "before"): (56.73,),
                (VGG, "satm"): (56.29,),
                (RESNET, "before"): (59.08,),
                (RESNET, "satm"): (51.77,),
            },
            lambda network: (_own(network), (), 0.0),
        ),
        against=("before",),
        settled=(*_COMMON, *_TRAINED, "leaking"),
    ),
    5: Table(
        "Black-box attacks from a third holdout network",
        _holdouts(_TABLE_5, (VGG, RESNET), _SCHEMES),
        against=("before", "ensemble"),
        settled=(*_COMMON, *_TRAINED, "holdout_epsilon", "ensemble"),
    ),
    6: Table(
        "ResNet50-Face trained with VGG16-Face, or with ResNet50-Img",
        _holdouts(_TABLE_6, (RESNET,), ("satm", "satm_with_resnet50_img")),
        against=("satm",),
        settled=(*_COMMON, *_TRAINED, "holdout_epsilon"),
    ),
    7: Table(
        "Errors on MNIST: structure A, under examples of structures C and D, the mean of both",
        tuple(
            Entry(scheme, _own("structure_a"), sources, float(bool(sources)), 100 - error if error else None)
            for sources, printed in ((_UNSEEN_BY_DIGITS, {"ensemble": 5.2, "satm": 5.6}), ((), {}))
            for scheme in _SCHEMES
            for error in [printed.get(scheme)]
        ),
        experiment="digits",
        against=("ensemble",),
        settled=("reading", "clipping", "alpha", "crafting", "digits", "ensemble", "adaptation", "before"),
        error=True,
        quoted="ImageNet, quoted from the paper and not measured here (error, top 1 and top 5): ensemble 27.0 % and "
        "7.9 %, SATM 26.4 % and 7.7 %. The ensemble's figures equal the worst case over many attacks in Tramèr et "
        "al.'s Table 4, so the two rows are not like for like.",
    ),
}


@dataclass(frozen=True)
class Figure:
    """One figure of the paper.

    Attributes:
        title: What it shows.
        networks: The networks that it shows, as `<scheme>/<network>`.
        split: "" for curves on the training images, "val_" on the validation images; None for no curves.
        epsilons: The epsilons of the pictures.
    """

    title: str
    networks: tuple[str, ...]
    split: str | None = None
    epsilons: tuple[float, ...] = ()


_CURVES = (f"satm/{VGG}", f"satm_without_adaptation/{VGG}")

FIGURES: Mapping[int, Figure] = {
    1: Figure(
        "Clean images and their adversarial examples, on ResNet50-Face",
        (f"before/{RESNET}",),
        epsilons=(64 / 256, 32 / 256, 16 / 256, 8 / 256),
    ),
    3: Figure("VGG16-Face on the training set while it is trained", _CURVES, ""),
    4: Figure("VGG16-Face on the validation set while it is trained", _CURVES, "val_"),
}
