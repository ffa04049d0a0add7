"""The paper's seven tables as data: the networks, examples, epsilons and printed figures of every entry.

Names are those of the presets `paper` and `small`: `<scheme>/<network>`, where the scheme "before" is a network that
was only fine-tuned, and "holdout" an unseen model. "{scheme}" stands for the entry's scheme.

Source:
    Tables 1 to 7 of Liao (SATM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VGG, RESNET = "vgg16_face", "resnet50_face"
PARTNER = {VGG: RESNET, RESNET: VGG}

READINGS = {"least_likely": "r+step_ll", "true": "r+fgsm"}
"""The two readings of R+Step-LL by the label that its gradient uses, and the presets' attack for each.

A scheme that trains with R+Step-LL exists once for each, as `<scheme>_<reading>`.
"""


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
        settled: The open points of the paper that it depends on, by their names in `settled.SETTLED`.
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


_CONTROLS = ("clean", "pgd", "ensemble", "satm_without_adaptation")
_OF_OURS = (*_CONTROLS[:3], "satm", _CONTROLS[3])
_Printed = Mapping[Any, tuple[float | None, float | None]]
_NONE = (None, None)


def _own(network: str) -> str:
    return f"{{scheme}}/{network}"


def _white_box(printed: _Printed) -> tuple[Entry, ...]:
    return tuple(
        Entry(scheme, _own(network), (_own(network),), 1.0, *printed.get((network, scheme), _NONE))
        for network in PARTNER
        for scheme in ("before", *_OF_OURS)
    )


def _strength(printed: _Printed, target: str) -> tuple[Entry, ...]:
    return tuple(
        Entry(scheme, target, (_own(network),), 1.0, *printed.get((network, scheme), _NONE))
        for network in PARTNER
        for scheme in ("before", *_OF_OURS)
    )


def _partners(printed: _Printed, clean: Mapping[tuple[str, str], float]) -> tuple[Entry, ...]:
    schemes = ("before", *_OF_OURS)
    partners = (
        Entry(scheme, _own(network), (_own(partner),), 1.0, *printed.get((network, scheme), _NONE))
        for network, partner in PARTNER.items()
        for scheme in schemes
    )
    return (
        *partners,
        *(
            Entry(scheme, _own(network), (), 0.0, clean.get((network, scheme)))
            for network in PARTNER
            for scheme in schemes
        ),
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
        _white_box(
            {
                (VGG, "before"): (4.30, 13.90),
                (VGG, "satm"): (7.22, 21.43),
                (RESNET, "before"): (8.79, 26.30),
                (RESNET, "satm"): (12.56, 29.89),
            }
        ),
        against=("before",),
        settled=_COMMON + _TRAINED,
    ),
    3: Table(
        "Strength of the networks' own examples, shown to an undefended InceptionV3",
        _strength(
            {
                (VGG, "before"): (14.49, 45.01),
                (VGG, "satm"): (14.32, 47.60),
                (RESNET, "before"): (23.03, 58.81),
                (RESNET, "satm"): (19.67, 53.99),
            },
            "holdout/inception_v3",
        ),
        against=("before",),
        settled=_COMMON + _TRAINED,
    ),
    4: Table(
        "Black-box attacks between the pair, before and after, and clean images",
        _partners(
            {
                (VGG, "before"): (35.39, 66.99),
                (VGG, "satm"): (52.40, 88.55),
                (RESNET, "before"): (16.25, 36.16),
                (RESNET, "satm"): (43.25, 76.11),
            },
            {(VGG, "before"): 56.73, (RESNET, "before"): 59.08, (VGG, "satm"): 56.29, (RESNET, "satm"): 51.77},
        ),
        against=("before",),
        settled=(*_COMMON, *_TRAINED, "leaking"),
    ),
    5: Table(
        "Black-box attacks from a third holdout network",
        _holdouts(_TABLE_5, (VGG, RESNET), ("before", *_OF_OURS)),
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
            for scheme in ("before", *_OF_OURS)
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
