"""The typed configuration, its presets, and how a command line becomes one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from satm_tf.attacks import Attack
from satm_tf.command_line import Parser
from satm_tf.configurable import unknown_name
from satm_tf.evaluation.names import UNSEEN
from satm_tf.experiment.run_folder import CO_TRAIN, FINE_TUNE, RunFolder, Stage
from satm_tf.experiment.sections import (
    ChecksConfig,
    DataConfig,
    ExportConfig,
    LossConfig,
    NetworkConfig,
    SchemeConfig,
    TrainingConfig,
    check_name,
    make_attack,
)
from satm_tf.training import Scheme

__all__ = [
    "PRESETS",
    "ChecksConfig",
    "Config",
    "DataConfig",
    "ExportConfig",
    "FrozenNetwork",
    "LossConfig",
    "NetworkConfig",
    "SchemeConfig",
    "TrainingConfig",
    "from_arguments",
    "make_attack",
    "parse",
    "parser",
]

PRESETS = {path.stem: path for path in Path(str(resources.files("satm_tf.experiment") / "presets")).glob("*.yaml")}


class FrozenNetwork(NamedTuple):
    """A network that only crafts for a scheme.

    Attributes:
        stage: The stage that trained it.
        network: Its own name.
    """

    stage: Stage
    network: str


@dataclass(frozen=True)
class Config:
    """A whole experiment: from images on disk to defended networks and the tables that compare them.

    What can be wrong without looking at the data is found when it is made.

    Attributes:
        name: Name of the experiment.
        run_dir: The run folder; null takes runs/<name>.
        seed: The one seed from which everything random follows.
        data: The images.
        networks: The networks that are defended, by name.
        holdouts: Networks that no scheme ever learns from, by name; they attack at the end.
        loss: What a network loses on its answers, in every stage.
        precision: Number formats: float32, mixed_bfloat16, mixed_float16; auto takes what this machine does well.
        strategy: Devices: none is one; mirrored all of this machine; multi_worker all machines that TF_CONFIG names;
            network_per_device one for each network.
        fine_tune: How each network is trained on clean images first.
        co_train: How each scheme trains them after that.
        attack: The attack in training, by name, with its options, for schemes that name no other.
        schemes: The ways of training that are compared, by name.
        evaluation_attacks: The attacks in the tables, by name; without an epsilon they take the training attack's.
        checks: Whether networks only hide their gradients.
        export: What is exported for serving.

    Raises:
        ValueError: If something is unknown, outside its range, or does not fit the rest.

    Example:
        >>> config = from_arguments(["--config", "quickstart"])
        >>> [str(stage) for stage in config.needed_stages([Stage("co_train", "undefended")])]
        ['fine_tune/compact_vgg', 'fine_tune/compact_resnet', 'co_train/undefended']
    """

    name: str = "experiment"
    run_dir: str | None = None
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    networks: dict[str, NetworkConfig] = field(default_factory=dict)
    holdouts: dict[str, NetworkConfig] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"] = "float32"
    strategy: Literal["none", "mirrored", "multi_worker", "network_per_device"] = "none"
    fine_tune: TrainingConfig = field(default_factory=TrainingConfig)
    co_train: TrainingConfig = field(default_factory=TrainingConfig)
    attack: dict[str, Any] = field(default_factory=dict)
    schemes: dict[str, SchemeConfig] = field(default_factory=dict)
    evaluation_attacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        if not self.networks or not self.schemes or not self.attack:
            raise ValueError(
                "A configuration needs networks, an attack and schemes; start from a preset with --config. "
                f"Received: networks={list(self.networks)}, attack={self.attack}, schemes={list(self.schemes)}"
            )
        self._check_names()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be a whole number from 0 to {2**31 - 1}. Received: {self.seed!r}")
        self.data.check()
        self.loss.check()
        self.checks.check()
        for name, network in self.all_networks.items():
            network.check(f"Network {name!r}", self.data.image_size)
        self.fine_tune.check("fine_tune")
        self.co_train.check("co_train")
        self.table_attacks()
        self._check_schemes()
        for name in self.checks.schemes or ():
            if name not in self.schemes:
                raise unknown_name("scheme in checks.schemes", name, self.schemes)
        if self.export.scheme is not None and self.export.scheme not in self.schemes:
            raise ValueError(
                f"export.scheme must be one of the schemes, {list(self.schemes)}. Received: {self.export.scheme!r}"
            )

    def _check_names(self) -> None:
        if not re.fullmatch(r"\w[\w .+-]{0,99}", self.name):
            raise ValueError(
                "name becomes a folder: a letter or digit, then letters, digits, spaces, dots, _, + or -, at most 100. "
                f"Received: {self.name!r}"
            )
        for name in self.all_networks:
            check_name("network", name)
        for name in self.schemes:
            check_name("scheme", name)
        for name in self.evaluation_attacks:
            check_name("attack", name)
        common = sorted(set(self.networks) & set(self.holdouts))
        if common:
            raise ValueError(f"A holdout must not be one of the networks. Received: {common[0]!r} in both")
        if UNSEEN in self.schemes:
            raise ValueError(f"{UNSEEN!r} is what results call unseen networks; choose another name for the scheme.")
        if FINE_TUNE in self.schemes:
            raise ValueError(f"{FINE_TUNE!r} is what frozen_from calls the fine-tuned networks; choose another name.")
        aliases = {f"frozen_{name}" for name in self.networks} & set(self.networks)
        if aliases:
            raise ValueError(
                f"{min(aliases)!r} is what schemes call another network once it is frozen; choose another name."
            )

    def _check_schemes(self) -> None:
        trained: list[str] = []
        for name, described in self.schemes.items():
            for network in described.networks or ():
                if network not in self.networks:
                    raise unknown_name(f"network in schemes.{name}.networks", network, self.networks)
            for network in described.sparring or ():
                if network not in self.networks:
                    raise unknown_name(f"network in schemes.{name}.sparring", network, self.networks)
            groups = described.frozen_from
            named = (
                [("frozen_from", groups)]
                if isinstance(groups, str)
                else [("frozen_from", group) for group in groups or () if group != FINE_TUNE]
            )
            for field_name, other in (*named, ("starts_from", described.starts_from)):
                if other is not None and other not in trained:
                    raise ValueError(
                        f"schemes.{name}.{field_name} must be a scheme that is trained before it: "
                        f"{', '.join(trained) or 'there is none'}. Received: {other!r}"
                    )
            if described.starts_from is not None:
                lacking = set(self.networks_of(name)) - set(self.networks_of(described.starts_from))
                if lacking:
                    raise ValueError(
                        f"schemes.{name} starts from {described.starts_from!r}, which does not train all of its "
                        f"networks. Missing: {', '.join(sorted(lacking))}"
                    )
            trained.append(name)
            self.training(Stage(CO_TRAIN, name)).check(f"schemes.{name}")
            self.frozen_sources(name)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.run_dir or Path("runs") / self.name)

    @property
    def all_networks(self) -> dict[str, NetworkConfig]:
        """The networks that are defended and the holdouts."""
        return {**self.networks, **self.holdouts}

    def networks_of(self, scheme: str) -> list[str]:
        """The networks that a scheme trains."""
        return list(self.schemes[scheme].networks or self.networks)

    def scheme(self, name: str) -> Scheme:
        """A scheme, with the experiment's attack if it names none."""
        return self.schemes[name].scheme(make_attack(self.attack)).by_name(self.networks_of(name))

    def table_attacks(self) -> dict[str, Attack]:
        """The attacks of the tables, by name."""
        epsilon = make_attack(self.attack).epsilon
        return {name: make_attack(options, epsilon) for name, options in self.evaluation_attacks.items()}

    def training(self, stage: Stage) -> TrainingConfig:
        """How a stage is trained."""
        if stage.kind == FINE_TUNE:
            return self.fine_tune
        epochs = self.schemes[stage.name].epochs
        return self.co_train if epochs is None else dataclasses.replace(self.co_train, epochs=epochs)

    def stages(self) -> list[Stage]:
        """The stages in which all networks are trained, each after all that it needs."""
        return [
            *(Stage(FINE_TUNE, name) for name in self.all_networks),
            *(Stage(CO_TRAIN, name) for name in self.schemes),
        ]

    def needed_stages(self, wanted: Collection[Stage]) -> list[Stage]:
        """Some stages and those that they start from or learn from, in the order of `stages`.

        Raises:
            ValueError: If there is no such stage.
        """
        known = self.stages()
        needed: set[Stage] = set()
        waiting = list(wanted)
        while waiting:
            stage = waiting.pop()
            if stage not in known:
                raise unknown_name("stage", str(stage), map(str, known))
            if stage not in needed:
                needed.add(stage)
                if stage.kind == CO_TRAIN:
                    waiting += [self.start(stage.name, network) for network in self.networks_of(stage.name)]
                    waiting += [Stage(FINE_TUNE, network) for network in self.schemes[stage.name].sparring or ()]
                    waiting += [source.stage for source in self.frozen_sources(stage.name).values()]
        return [stage for stage in known if stage in needed]

    def start(self, scheme: str, network: str) -> Stage:
        """The stage whose weights a scheme begins with."""
        before = self.schemes[scheme].starts_from
        return Stage(CO_TRAIN, before) if before else Stage(FINE_TUNE, network)

    def frozen_sources(self, scheme: str) -> dict[str, FrozenNetwork]:
        """The networks that only craft for a scheme, by the name that the scheme knows them by.

        Raises:
            ValueError: If the scheme learns from a network that there is not.
        """
        described = self.schemes[scheme]
        given = described.frozen_from
        several = isinstance(given, list)
        known = {}
        for origin in given if isinstance(given, list) else [given or FINE_TUNE]:
            fine_tuned = origin == FINE_TUNE
            for name in self.networks if fine_tuned else self.networks_of(origin):
                stage = Stage(FINE_TUNE, name) if fine_tuned else Stage(CO_TRAIN, origin)
                known[f"{origin}/{name}" if several else f"frozen_{name}"] = FrozenNetwork(stage, name)
        sources = self.scheme(scheme).sources(self.networks_of(scheme), known, described.sparring)
        return {name: place for name, place in known.items() if any(name in names for names in sources.values())}


def parser(prog: str = "satm-tf train") -> Parser:
    """The options of a configuration: `--config`, and every field at any depth as an option of its own."""
    result = Parser(
        prog=prog,
        description="Any field of the configuration can be set, at any depth: --data.root FOLDER, "
        "--networks.vgg.dropout 0.3, --schemes.satm.domain_adaptation none. Without --config the preset is quickstart.",
    )
    result.add_config(PRESETS)
    result.add_class_arguments(Config)
    return result


def from_arguments(arguments: Sequence[str], prog: str = "satm-tf train") -> Config:
    """The configuration that a command line describes.

    Args:
        arguments: As in `sys.argv[1:]`. Without `--config` the preset is quickstart.
        prog: Name of the program in messages.

    Raises:
        SystemExit: If an argument is wrong; the message is printed.

    Example:
        >>> from_arguments(["--config", "fashion_mnist", "--data.root", "fashion"]).data.root
        'fashion'
    """
    return parse(parser(prog), arguments)[0]


def parse(options: Parser, arguments: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """The configuration that a command line describes, and what it says beside it.

    Args:
        options: As `parser` gives it, to which options may have been added.
        arguments: As in `sys.argv[1:]`.

    Raises:
        SystemExit: If an argument is wrong; the message is printed.
    """
    arguments = list(arguments)
    if not any(argument == "--config" or argument.startswith("--config=") for argument in arguments):
        arguments = ["--config", "quickstart", *arguments]
    values = options.instantiate(options.parse_args(arguments)).as_dict()
    described = {each.name: values.pop(each.name) for each in dataclasses.fields(Config)}
    return Config(**described), values
