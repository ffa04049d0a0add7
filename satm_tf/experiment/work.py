"""The parts of a run, and the work of each: a count of passes through its networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from satm_tf.attacks import Attack
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.evaluation.predictions import CLEAN, Cell
from satm_tf.evaluation.rungs import rung_of
from satm_tf.experiment.config import Config
from satm_tf.experiment.images import Sizes
from satm_tf.experiment.run_folder import FINE_TUNE, Stage
from satm_tf.training.sources import split

# Shares of a forward and backward pass to the weights, by the usual count of multiplications: forward only, and forward
# and back to the images.
_FORWARD, _CRAFT = 1 / 3, 2 / 3
# Tracing a stage's graphs, loading, saving and logging, as a multiple of a network's first call.
_STAGE_OVERHEAD = 8.0
# The masking checks: gradients for each step of the iterative attack, over all attacks; the default effort.
_GRADIENTS = 10
_EFFORT = {"steps": 20, "queries": 300}
# Exporting a network and querying the export.
_EXPORTS = 4.0
# A small network's first call, as the number of images that it could train on in that time.
_FIRST = 150.0
_SLOTS = {"sgd": 1, "adam": 2, "adamw": 2}


class Cost(NamedTuple):
    """The cost of one stage, or of measuring.

    Attributes:
        steps: Steps of training, or batches to measure.
        seconds: Approximate time on this machine.
        bytes: Disk space of its results.
        passing: Additional disk space while it runs.
    """

    steps: int
    seconds: float
    bytes: float
    passing: float = 0.0


NOTHING = Cost(0, 0.0, 0.0)


class Network(NamedTuple):
    """The cost of one network: seconds of a forward and backward pass per image, and of its first call; its weights."""

    seconds: float
    first: float
    weights: int


Timed: TypeAlias = Callable[[str], Network]


def all_alike(name: str) -> Network:
    """Treats all networks alike: a pass is one unit, and the first call costs as much as some hundred images."""
    return Network(1.0, _FIRST, 0)


def count(
    config: Config, stages: Iterable[Stage], cells: Iterable[Cell], found: Sizes, timed: Timed = all_alike
) -> dict[str, Cost]:
    """The cost of each stage, and of "measure".

    A network's forward and backward pass is timed. An adversarial image counts as one such pass of the network that
    learns from it and, for each gradient of the attack, as two thirds of a pass of its source; a prediction counts as a
    third. The examples that a scheme crafts once stay on disk until all stages are done.

    Args:
        config: The configuration.
        stages: The stages that still have to be trained.
        cells: The cells to measure.
        found: The numbers of images.
        timed: The cost of each network, by name; equal for all if not given.
    """
    costs = {}
    kept = 0.0
    for stage in stages:
        training = config.training(stage)
        trained = [stage.name] if stage.kind == FINE_TUNE else _names(config, stage.name)
        clean = sum(timed(each).seconds for each in trained)
        learning, once = (0.0, 0.0) if stage.kind == FINE_TUNE else _adversarial(config, stage.name, timed, found)
        kept += 0.0 if stage.kind == FINE_TUNE else crafted_bytes(config, stage.name, found)
        seen = training.epochs * (found.train + 0.5 * found.validation)
        overhead = _STAGE_OVERHEAD * sum(timed(each).first for each in trained)
        size = 4.0 * sum(timed(each).weights for each in trained)
        costs[str(stage)] = Cost(
            training.epochs * max(1, found.train // training.batch_size),
            seen * (clean + learning) + (once if training.epochs else 0.0) + overhead,
            size,
            2 * size * (1 + _SLOTS.get(training.optimizer, 2)) + kept,
        )
    attacks = config.table_attacks()
    wanted = set(cells)
    crafted = {(cell.attack, cell.epsilon, cell.source) for cell in wanted if cell.attack != CLEAN}
    seconds = sum(_CRAFT * getattr(attacks[attack], "steps", 1) * timed(s).seconds for attack, _, s in crafted)
    seconds += sum(_FORWARD * timed(NetworkName.parse(cell.target).network).seconds for cell in wanted)
    overhead = sum(timed(NetworkName.parse(cell.target).network).first for cell in wanted) / 4
    # Two searches against every defended network; half of the images are fooled before their end.
    asked = max(config.queries.budgets, default=0) * min(config.queries.limit, found.test)
    queried = {cell.target for cell in wanted if NetworkName.parse(cell.target).scheme in config.schemes}
    searched = sum(asked * _FORWARD * timed(target).seconds for target in queried)
    blocks = len(crafted) * -(-found.test // 128)
    costs["measure"] = Cost(blocks, found.test * seconds + searched + overhead, float(found.test * len(wanted)))
    return costs


def count_checks(config: Config, found: Sizes, timed: Timed = all_alike) -> Cost:
    """The cost of the checks, by a simple count: gradients for each step, and queries, of each network per image.

    The checks' attacks take about ten gradients of a network for each of their steps, and half of the queries, because
    most images are fooled earlier.
    """
    schemes = config.schemes if config.checks.schemes is None else config.checks.schemes
    checked = [name for scheme in schemes for name in config.networks_of(scheme)]
    images = min(found.test, config.checks.limit)
    effort = {**_EFFORT, **config.checks.effort}
    each = _CRAFT * _GRADIENTS * effort["steps"] + _FORWARD * effort["queries"] / 2
    seconds = sum(images * each * timed(name).seconds + _STAGE_OVERHEAD * timed(name).first for name in checked)
    return Cost(0, seconds, 0.0)


def count_export(config: Config, timed: Timed = all_alike) -> Cost:
    """The cost of the SavedModels, each written and queried once."""
    names = config.networks_of(config.export.scheme) if config.export.scheme else []
    exported = [timed(name) for name in config.export.networks or names]
    return Cost(0, sum(_EXPORTS * each.first for each in exported), sum(4.0 * each.weights for each in exported))


def parts(config: Config, found: Sizes, timed: Timed = all_alike) -> dict[str, Cost]:
    """The cost of each part of a whole run, in order: the stages, "measure", "check" and "export".

    Args:
        config: The configuration.
        found: The numbers of images.
        timed: As `count` takes it.
    """
    return {
        **count(config, config.stages(), cells_of(config), found, timed),
        "check": count_checks(config, found, timed),
        "export": count_export(config, timed),
    }


def finished(config: Config) -> set[str]:
    """The parts of a run that its folder already holds."""
    folder = config.folder
    files = {"measure": folder.results, "check": folder.checks, "export": folder.exports}
    files |= {str(stage): folder.networks(stage) for stage in config.stages()}
    return {part for part, file in files.items() if file.exists()}


def cells_of(config: Config) -> list[Cell]:
    """All cells that a run measures."""
    trained = [NetworkName(scheme, name) for scheme in config.schemes for name in config.networks_of(scheme)]
    networks = [str(name) for name in (*trained, *(NetworkName(UNSEEN, holdout) for holdout in config.holdouts))]
    attacks = {CLEAN: 0.0, **{name: attack.epsilon for name, attack in config.table_attacks().items()}}
    surrogates = [str(name) for name in config.surrogate_names]
    return [
        Cell(attack, epsilon, source, target)
        for attack, epsilon in attacks.items()
        for source in ([""] if attack == CLEAN else [*networks, *surrogates])
        for target in networks
        if source not in surrogates or rung_of(source, target, config.groups)
    ]


def _crafters(config: Config, scheme: str) -> dict[str, dict[str, Attack]]:
    """The sources of each network of a scheme, each with its attack."""
    described, networks = config.scheme(scheme), config.networks_of(scheme)
    sources = described.sources(networks, config.frozen_sources(scheme), config.sparring(scheme))
    return {
        learner: {source: described.attack_on(source, learner, source in networks) for source in its}
        for learner, its in sources.items()
    }


def _crafted_once(config: Config, scheme: str, found: Sizes) -> tuple[set[tuple[str, Attack]], int]:
    """The sources of a scheme with their attacks, and how many examples each crafts before training."""
    copies = config.scheme(scheme).crafted_once
    pairs = {pair for its in _crafters(config, scheme).values() for pair in its.items()}
    return pairs, copies * found.train + found.validation if copies else 0


def crafted_bytes(config: Config, scheme: str, found: Sizes) -> float:
    """The maximum disk space of the examples that a scheme crafts once: schemes may share them."""
    pairs, images = _crafted_once(config, scheme, found)
    return 3.0 * config.data.image_size**2 * len(pairs) * images


def _adversarial(config: Config, scheme: str, timed: Timed, found: Sizes) -> tuple[float, float]:
    """Seconds per clean image for its adversarial ones in an epoch; and for all that is crafted once."""
    described = config.scheme(scheme)
    frozen = config.frozen_sources(scheme)
    networks = config.networks_of(scheme)

    def architecture(source: str) -> Network:
        if source in frozen:
            source = frozen[source].network
        while split(source)[0]:
            source = split(source)[1]
        return timed(str(NetworkName(scheme, source)))

    def crafting(source: str, attack: Attack) -> float:
        return _CRAFT * getattr(attack, "steps", 1) * architecture(source).seconds

    seconds = 0.0
    for learner, its in _crafters(config, scheme).items():
        share = 1.0 if described.mixing == "all" or not its else 1 / len(its)
        anew = 0.0 if described.crafted_once else sum(crafting(*each) for each in its.items())
        seconds += share * (anew + len(its) * architecture(learner).seconds)
        if learner not in networks:  # A sparring partner also learns from clean images.
            seconds += architecture(learner).seconds
    taught = described.teachers_of(networks, frozen).values()
    seconds += sum(_FORWARD * architecture(teacher).seconds for its in taught for teacher in its)
    pairs, images = _crafted_once(config, scheme, found)
    return seconds, images * sum(crafting(*each) for each in pairs)


def _names(config: Config, scheme: str) -> list[str]:
    return [str(NetworkName(scheme, name)) for name in config.networks_of(scheme)]
