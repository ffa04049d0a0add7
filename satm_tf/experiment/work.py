"""The parts of a run, and how much work each is: a count of passes through its networks."""

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

# Of a pass forward and back to the weights, by the usual count of multiplications: forward alone, and forward and back
# to the images.
_FORWARD, _CRAFT = 1 / 3, 2 / 3
# Tracing a stage's graphs, loading, saving and logging, in times of a network's first call.
_STAGE_OVERHEAD = 8.0
# Of the masking checks: gradients for each step of the iterative attack, all attacks together; the usual effort.
_GRADIENTS = 10
_EFFORT = {"steps": 20, "queries": 300}
# Of an export and of asking it.
_EXPORTS = 4.0
# A small network's first call, in images that it could learn from meanwhile.
_FIRST = 150.0
_SLOTS = {"sgd": 1, "adam": 2, "adamw": 2}


class Cost(NamedTuple):
    """What one stage, or measuring, takes.

    Attributes:
        steps: Steps of training, or batches to measure.
        seconds: About how long, on this machine.
        bytes: What it leaves on disk.
        passing: What it needs there while it runs.
    """

    steps: int
    seconds: float
    bytes: float
    passing: float = 0.0


NOTHING = Cost(0, 0.0, 0.0)


class Network(NamedTuple):
    """What one network takes: seconds of a pass forward and back for each image, of its first call; its weights."""

    seconds: float
    first: float
    weights: int


Timed: TypeAlias = Callable[[str], Network]


def all_alike(name: str) -> Network:
    """Takes a network for one like all others: a pass is a unit, and the first call as much as some hundred images."""
    return Network(1.0, _FIRST, 0)


def count(
    config: Config, stages: Iterable[Stage], cells: Iterable[Cell], found: Sizes, timed: Timed = all_alike
) -> dict[str, Cost]:
    """The cost of each stage, and of "measure".

    A network's pass forward and back is timed; an adversarial image is counted as such a pass of who learns from it
    and, for each gradient of the attack, two thirds of one of who crafts it; a prediction as a third. What a scheme
    crafts once is on the disk until all stages are done.

    Args:
        config: The configuration.
        stages: The stages that are still to be trained.
        cells: The cells that are to be measured.
        found: The numbers of images.
        timed: What each network takes, by name; all the same if not given.
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
    # Two searches of every network that is defended; half of the images fall before their end.
    asked = max(config.queries.budgets, default=0) * min(config.queries.limit, found.test)
    queried = {cell.target for cell in wanted if NetworkName.parse(cell.target).scheme in config.schemes}
    searched = sum(asked * _FORWARD * timed(target).seconds for target in queried)
    blocks = len(crafted) * -(-found.test // 128)
    costs["measure"] = Cost(blocks, found.test * seconds + searched + overhead, float(found.test * len(wanted)))
    return costs


def count_checks(config: Config, found: Sizes, timed: Timed = all_alike) -> Cost:
    """The cost of the checks, by a simple count: every image takes some gradients a step, and queries, of each network.

    Of one network the checks' attacks take about ten gradients for each of their steps, and ask it half of the queries,
    as most images fall before.
    """
    schemes = config.schemes if config.checks.schemes is None else config.checks.schemes
    checked = [name for scheme in schemes for name in config.networks_of(scheme)]
    images = min(found.test, config.checks.limit)
    effort = {**_EFFORT, **config.checks.effort}
    each = _CRAFT * _GRADIENTS * effort["steps"] + _FORWARD * effort["queries"] / 2
    seconds = sum(images * each * timed(name).seconds + _STAGE_OVERHEAD * timed(name).first for name in checked)
    return Cost(0, seconds, 0.0)


def count_export(config: Config, timed: Timed = all_alike) -> Cost:
    """The cost of the SavedModels, each written and asked once more."""
    names = config.networks_of(config.export.scheme) if config.export.scheme else []
    exported = [timed(name) for name in config.export.networks or names]
    return Cost(0, sum(_EXPORTS * each.first for each in exported), sum(4.0 * each.weights for each in exported))


def parts(config: Config, found: Sizes, timed: Timed = all_alike) -> dict[str, Cost]:
    """The cost of each part of a whole run, in their order: the stages, "measure", "check" and "export".

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
    """Those of the parts of a run that its folder holds already."""
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
    """What the examples that a scheme crafts once take on disk, at most: it may share them with another."""
    pairs, images = _crafted_once(config, scheme, found)
    return 3.0 * config.data.image_size**2 * len(pairs) * images


def _adversarial(config: Config, scheme: str, timed: Timed, found: Sizes) -> tuple[float, float]:
    """Seconds, for each clean image, of adversarial ones in an epoch; and those of all that is crafted once."""
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
        if learner not in networks:  # A sparring partner has clean images to learn from too.
            seconds += architecture(learner).seconds
    taught = described.teachers_of(networks, frozen).values()
    seconds += sum(_FORWARD * architecture(teacher).seconds for its in taught for teacher in its)
    pairs, images = _crafted_once(config, scheme, found)
    return seconds, images * sum(crafting(*each) for each in pairs)


def _names(config: Config, scheme: str) -> list[str]:
    return [str(NetworkName(scheme, name)) for name in config.networks_of(scheme)]
