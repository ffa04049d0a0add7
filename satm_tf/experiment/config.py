"""The typed configuration, its presets, and parsing it from a command line."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from satm_tf.attacks import Attack
from satm_tf.command_line import Parser
from satm_tf.configurable import look_up, unknown_name
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.evaluation.rungs import RUNGS, Group
from satm_tf.experiment.run_folder import CO_TRAIN, FINE_TUNE, RunFolder, Stage
from satm_tf.experiment.sections import (
    MOST_BYTES,
    ChecksConfig,
    DataConfig,
    ExportConfig,
    LossConfig,
    NetworkConfig,
    QueriesConfig,
    SchemeConfig,
    TrainingConfig,
    check_name,
    check_path,
    make_attack,
)
from satm_tf.experiment.surrogates import SAME, SurrogateConfig, Surrogates, expand
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
    "QueriesConfig",
    "SchemeConfig",
    "SurrogateConfig",
    "TrainingConfig",
    "from_arguments",
    "make_attack",
    "parse",
    "parser",
]

PRESETS = {path.stem: path for path in Path(str(resources.files("satm_tf.experiment") / "presets")).glob("*.yaml")}


class FrozenNetwork(NamedTuple):
    """A network that only crafts for a scheme, or teaches: the stage that trained it, and its own name."""

    stage: Stage
    network: str


@dataclass(frozen=True)
class Config:
    """A complete experiment, from images on disk to defended networks and the tables that compare them.

    Creating the object checks everything that does not need the data.

    Attributes:
        name: Name of the experiment.
        run_dir: The run folder; null is runs/<name>, or runs/<name>-<folder> with the name of data.root.
        seed: The seed of all random numbers.
        data: The images.
        networks: The networks that are defended, by name.
        holdouts: Networks that no scheme ever learns from, by name; they attack at the end.
        surrogates: Groups of an attacker's other models, by name; they attack at the end.
        loss: The classification loss, in every stage.
        precision: The dtype policy: float32, mixed_bfloat16 or mixed_float16; auto measures which one trains these
            networks faster on this machine.
        strategy: The devices: none uses one; mirrored uses all GPUs of this machine; multi_worker uses all machines in
            TF_CONFIG; network_per_device uses one for each network.
        fine_tune: Fine-tuning of each network on clean images.
        co_train: Training of the networks with each scheme, after fine-tuning.
        attack: The training attack, with its name and options, for schemes without an attack of their own.
        schemes: The training schemes to compare, by name.
        evaluation_attacks: The attacks in the tables, by name; without an epsilon they use the training attack's.
        queries: Query attacks on the trained networks.
        checks: The checks for gradient masking.
        export: The networks to export for serving.

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
    surrogates: dict[str, SurrogateConfig] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"] = "float32"
    strategy: Literal["none", "mirrored", "multi_worker", "network_per_device"] = "none"
    fine_tune: TrainingConfig = field(default_factory=TrainingConfig)
    co_train: TrainingConfig = field(default_factory=TrainingConfig)
    attack: dict[str, Any] = field(default_factory=dict)
    schemes: dict[str, SchemeConfig] = field(default_factory=dict)
    evaluation_attacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    queries: QueriesConfig = field(default_factory=QueriesConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        _check_given(vars(self))
        if not self.networks or not self.schemes or not self.attack:
            raise ValueError(
                "A configuration needs networks, an attack and schemes; start from a preset with --config. "
                f"Received: networks={list(self.networks)}, attack={self.attack}, schemes={list(self.schemes)}"
            )
        self._check_names()
        if type(self.seed) is not int or not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be a whole number from 0 to {2**31 - 1}. Received: {self.seed!r}")
        for name, network in self.all_networks.items():
            network.check(f"Network {name!r}", self.data.image_size)
        self.fine_tune.check("fine_tune")
        self.co_train.check("co_train")
        self.table_attacks()
        self._check_schemes()
        self._check_surrogates()
        for name in self.checks.schemes or ():
            look_up("scheme in checks.schemes", name, self.schemes)
        if self.export.scheme is not None and self.export.scheme not in self.schemes:
            raise ValueError(
                f"export.scheme must be one of the schemes, {list(self.schemes)}. Received: {self.export.scheme!r}"
            )
        for name in self.export.networks or ():
            if self.export.scheme is None or name not in self.networks_of(self.export.scheme):
                raise ValueError(f"export.networks must be trained by export.scheme. Received: {name!r}")

    def _check_names(self) -> None:
        if not re.fullmatch(r"\w[\w .+-]*", self.name) or len(self.name.encode()) > MOST_BYTES:
            raise ValueError(
                "name becomes a folder name: a letter or digit, then letters, digits, spaces, dots, _, + or -, at "
                f"most {MOST_BYTES} bytes in UTF-8. Received: {self.name!r}"
            )
        check_path("run_dir", self.run_dir)
        kinds: dict[str, Collection[str]] = {
            "a network": self.all_networks,
            "a scheme": self.schemes,
            "an attack": self.evaluation_attacks,
            "a group of surrogates": self.surrogates,
        }
        for kind, names in kinds.items():
            for name in names:
                check_name(kind, name)
        another = "choose another name for the scheme."
        clashes: list[tuple[Collection[str], Collection[str], str]] = [
            (
                self.surrogates,
                {UNSEEN, *self.schemes},
                "A group of surrogates must not have the name of a scheme, whose networks are each other's partners, "
                f"or be {UNSEEN!r}. Received: surrogates.{{}}",
            ),
            (self.schemes, RUNGS, f"{{!r}} is a rung of the ladder in results; {another}"),
            (self.holdouts, self.networks, "A holdout must not be one of the networks. Received: {!r} in both"),
            (self.schemes, [UNSEEN], f"{{!r}} is the name of unseen networks in results; {another}"),
            (self.schemes, [FINE_TUNE], f"{{!r}} is the name of the fine-tuned networks in frozen_from; {another}"),
            (
                self.networks,
                [f"frozen_{name}" for name in self.networks],
                "{!r} is the name of a frozen network in a scheme; choose another name.",
            ),
        ]
        for names, taken, message in clashes:
            common = set(names) & set(taken)
            if common:
                raise ValueError(message.format(min(common)))

    def _check_schemes(self) -> None:
        trained: list[str] = []
        for name, described in self.schemes.items():
            for field_name in ("networks", "sparring"):
                for network in getattr(described, field_name) or ():
                    look_up(f"network in schemes.{name}.{field_name}", network, self.networks)
            frozen = [("frozen_from", origin) for origin in described.frozen_origins]
            for field_name, other in (*frozen, ("starts_from", described.starts_from)):
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
            self._check_training(f"schemes.{name}", name)

    def _check_surrogates(self) -> None:
        for group, described in self.surrogates.items():
            path = f"surrogates.{group}"
            if described.images == "share" and not self.data.surrogate_share:
                raise ValueError(f"{path}.images: share needs a data.surrogate_share above 0. Received: 0")
            for name, network in (described.networks or {}).items():
                check_name("a network", name)
                network.check(f"{path}.networks.{name}", self.data.image_size)
        for name, trained in self.trained_surrogates.items():
            if trained.scheme is not None:
                for other in (trained.scheme.starts_from, *trained.scheme.frozen_origins):
                    if other is not None and other not in self.trained_surrogates:
                        raise ValueError(
                            f"surrogates.{trained.group} is trained like {trained.target}, which needs {other!r}, but "
                            f"is not trained for that scheme. Received: against={trained.described.against}"
                        )
                self._check_training(f"surrogates.{trained.group}.scheme", name)

    def _check_training(self, path: str, scheme: str) -> None:
        self.training(Stage(CO_TRAIN, scheme)).check(path)
        self.frozen_sources(scheme)
        crafted_once = self.scheme(scheme).crafted_once
        if crafted_once and self.data.augmentation is not None:
            raise ValueError(
                f"{path}.crafted_once needs images that are the same in every epoch; set data.augmentation to null. "
                f"Received: {self.data.augmentation}"
            )
        if crafted_once and self.strategy in ("mirrored", "multi_worker"):
            raise ValueError(
                f"{path}.crafted_once works on one device only; set strategy to none. Received: {self.strategy!r}"
            )

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        own = "" if self.data.root is None else "-" + re.sub(r"[^\w.+-]", "_", Path(self.data.root).resolve().name)
        return RunFolder(self.run_dir or Path("runs") / f"{self.name}{own}")

    @property
    def all_networks(self) -> dict[str, NetworkConfig]:
        """The networks that are defended and the holdouts."""
        return {**self.networks, **self.holdouts}

    def networks_of(self, scheme: str) -> list[str]:
        """The networks that a scheme, or a group of surrogates, trains."""
        return list(self._described(scheme).networks or self.networks)

    def _described(self, scheme: str) -> SchemeConfig:
        """A scheme of the experiment, or of a group of surrogates."""
        trained = self.trained_surrogates.get(scheme)
        return trained.scheme if trained and trained.scheme else self.schemes[scheme]

    @functools.cached_property
    def trained_surrogates(self) -> dict[str, Surrogates]:
        """The trained groups of surrogates, by the name used in results."""
        return expand(self.surrogates, networks=list(self.networks), holdouts=list(self.holdouts), schemes=self.schemes)

    @property
    def groups(self) -> dict[str, Group]:
        """The description of each group of surrogates in results."""
        return {name: Group(each.described.rung, each.target) for name, each in self.trained_surrogates.items()}

    @property
    def surrogate_names(self) -> list[NetworkName]:
        """The models of all groups of surrogates, by their names in results."""
        return [NetworkName(name, each) for name, group in self.trained_surrogates.items() for each in group.networks]

    def stage_of(self, name: NetworkName) -> Stage:
        """The last stage that trains a network of results."""
        group = self.trained_surrogates.get(name.scheme)
        return self.start(*name) if group and group.scheme is None else Stage.of(name)

    def described_network(self, name: NetworkName) -> NetworkConfig:
        """The configuration of a network by its name in results; without a scheme, of a network of the experiment."""
        group = self.surrogates.get(name.scheme.partition(".")[0])
        own = (group.networks or {}) if group and group.start != SAME else {}
        return own.get(name.network) or self.all_networks[name.network]

    def surrogates_of(self, stage: Stage) -> SurrogateConfig | None:
        """The group whose models a stage trains; None for the experiment's own."""
        group, slash, _ = stage.name.partition("." if stage.kind == CO_TRAIN else "/")
        return self.surrogates.get(group) if slash or stage.kind == CO_TRAIN else None

    def scheme(self, name: str) -> Scheme:
        """A scheme, with the experiment's attack if it names none."""
        return self._described(name).scheme(make_attack(self.attack)).by_name(self.networks_of(name))

    def table_attacks(self) -> dict[str, Attack]:
        """The attacks of the tables, by name."""
        epsilon = make_attack(self.attack).epsilon
        return {name: make_attack(options, epsilon) for name, options in self.evaluation_attacks.items()}

    def training(self, stage: Stage) -> TrainingConfig:
        """The training options of a stage."""
        if stage.kind == FINE_TUNE:
            network = self.described_network(NetworkName.parse(stage.name))
            return dataclasses.replace(self.fine_tune, epochs=0) if network.model else self.fine_tune
        epochs = self._described(stage.name).epochs
        return self.co_train if epochs is None else dataclasses.replace(self.co_train, epochs=epochs)

    def stages(self) -> list[Stage]:
        """The stages that train all networks, each after those that it needs."""
        return [
            *(Stage(FINE_TUNE, name) for name in self.all_networks),
            *(Stage(CO_TRAIN, name) for name in self.schemes),
            *dict.fromkeys(
                Stage(FINE_TUNE, f"{each.group}/{network}")
                for each in self.trained_surrogates.values()
                if each.described.start != SAME
                for network in each.described.networks or ()
            ),
            *(Stage(CO_TRAIN, name) for name, each in self.trained_surrogates.items() if each.scheme is not None),
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
                    waiting += [Stage(FINE_TUNE, network) for network in self.sparring(stage.name) or ()]
                    waiting += [source.stage for source in self.frozen_sources(stage.name).values()]
        return [stage for stage in known if stage in needed]

    def start(self, scheme: str, network: str) -> Stage:
        """The stage whose weights a scheme, or a group of surrogates, starts from."""
        group = self.trained_surrogates.get(scheme)
        described = self._described(scheme) if group is None or group.scheme else None
        if described and described.starts_from:
            return Stage(CO_TRAIN, described.starts_from)
        return self._fine_tuned(scheme, network)

    def _fine_tuned(self, scheme: str, network: str) -> Stage:
        """The stage that fine-tunes a network of a scheme, or of a group of surrogates."""
        group = self.trained_surrogates.get(scheme)
        own = group and group.described.networks and group.described.start != SAME
        return Stage(FINE_TUNE, f"{group.group}/{network}" if group and own else network)

    def sparring(self, scheme: str) -> list[str] | None:
        """The networks that a scheme's sparring partners start from; None, as for surrogates, means those it trains."""
        return None if scheme in self.trained_surrogates else self.schemes[scheme].sparring

    def frozen_sources(self, scheme: str) -> dict[str, FrozenNetwork]:
        """The networks that only craft for a scheme, or teach it, by their names in the scheme.

        Raises:
            ValueError: If the scheme learns from a network that does not exist.
        """
        given, group = self._described(scheme).frozen_from, self.trained_surrogates.get(scheme)
        known = {}
        for origin in given if isinstance(given, list) else [given or FINE_TUNE]:
            own = group.networks if group else self.networks
            for name in own if origin == FINE_TUNE else self.networks_of(origin):
                stage = self._fine_tuned(scheme, name) if origin == FINE_TUNE else Stage(CO_TRAIN, origin)
                alias = f"{origin}/{name}" if isinstance(given, list) else f"frozen_{name}"
                known[alias] = FrozenNetwork(stage, name)
        described, networks = self.scheme(scheme), self.networks_of(scheme)
        sources = described.sources(networks, known, self.sparring(scheme))
        needed = {*itertools.chain(*sources.values(), *described.teachers_of(networks, known).values())}
        return {name: place for name, place in known.items() if name in needed}


def _check_given(values: Any) -> None:
    for each in dataclasses.fields(Config):
        if values[each.name] is None and each.default is not None:
            raise ValueError(f"{each.name} must not be null; omit it to use the default. Received: null")
        if dataclasses.is_dataclass(each.default_factory) and not hasattr(values[each.name], "__dict__"):
            raise ValueError(f"{each.name} must be a mapping of its fields. Received: {values[each.name]!r}")


def parser(prog: str = "satm-tf train") -> Parser:
    """The options of a configuration: `--config`, and every field at any depth as a separate option."""
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
        ValueError: As `Config` does.

    Example:
        >>> from_arguments(["--config", "fashion_mnist", "--data.root", "fashion"]).data.root
        'fashion'
    """
    return parse(parser(prog), arguments)[0]


def parse(options: Parser, arguments: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """The configuration that a command line describes, and the other options.

    Args:
        options: The result of `parser`, possibly with added options.
        arguments: As in `sys.argv[1:]`.

    Raises:
        SystemExit: If an argument is wrong; the message is printed.
    """
    arguments = list(arguments)
    if not any(argument == "--config" or argument.startswith("--config=") for argument in arguments):
        arguments = ["--config", "quickstart", *arguments]
    parsed = options.parse_args(arguments)
    _check_given(parsed)
    values = options.instantiate(parsed).as_dict()
    described = {each.name: values.pop(each.name) for each in dataclasses.fields(Config)}
    return Config(**described), values
