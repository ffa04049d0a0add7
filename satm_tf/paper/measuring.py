"""From tables to the stages that must be trained and the cells that must be measured, each once for all tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import keras
import pandas as pd

from satm_tf import data
from satm_tf.attacks import Attack
from satm_tf.configurable import unknown_name
from satm_tf.evaluation import Predictions, measure
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.evaluation.predictions import CLEAN, Cell, concatenate
from satm_tf.experiment.config import Config, make_attack
from satm_tf.experiment.images import make_batches
from satm_tf.experiment.run_folder import FINE_TUNE, RunFolder, Stage
from satm_tf.models import ImageClassifier
from satm_tf.paper.tables import READINGS, Entry, Table

_BEFORE = "before"


def resolve(config: Config, name: str, reading: str) -> NetworkName:
    """The network of a run that a name in a table refers to under a reading of the attack.

    Args:
        config: The run's configuration.
        name: `<scheme>/<network>`.
        reading: One of `READINGS`.

    Raises:
        ValueError: If the configuration has no such scheme.

    Example:
        >>> str(resolve(config, "satm/vgg16_face", "true"))
        'satm_true/vgg16_face'
    """
    scheme, network = NetworkName.parse(name)
    for known in (scheme, f"{scheme}_{reading}"):
        if known in (_BEFORE, UNSEEN, *config.schemes):
            return NetworkName(known, network)
    raise unknown_name("scheme of a table", scheme, config.schemes)


def stage_of(name: NetworkName) -> Stage:
    """The stage that trains a network, given as `resolve` returns it."""
    return Stage(FINE_TUNE, name.network) if name.scheme == _BEFORE else Stage.of(name)


def cells_of(config: Config, table: Table, entry: Entry, reading: str) -> list[Cell]:
    """The cells whose mean is an entry."""
    target = resolve(config, entry.target.format(scheme=entry.scheme), reading)
    if not entry.sources:
        return [Cell(CLEAN, 0.0, "", str(target))]
    epsilon = entry.epsilon * (table.epsilon or make_attack(config.attack).epsilon)
    sources = (resolve(config, source.format(scheme=entry.scheme), reading) for source in entry.sources)
    return [Cell(READINGS[reading], epsilon, str(source), str(target)) for source in sources]


def stages_of(cells: Iterable[Cell]) -> list[Stage]:
    """The stages that train the networks of some cells, each once."""
    names = (name for cell in cells for name in (cell.source, cell.target) if name)
    return list(dict.fromkeys(stage_of(NetworkName.parse(name)) for name in names))


def measure_cells(config: Config, images: data.ImageData, cells: Iterable[Cell]) -> Predictions:
    """Measures the cells that have not been measured yet for any table.

    Args:
        config: The run's configuration; its folder holds the networks of the stages they need, and `measured/`, where
            the results are stored.
        images: Its images.
        cells: The cells to measure.

    Returns:
        Everything that has been measured in this run.

    Raises:
        ValueError: If there are no cells, or a file in `measured/` is damaged.
        FloatingPointError: If a network's logits are not finite.
    """
    folder = config.folder
    networks: dict[str, ImageClassifier] = {}

    def load(name: str) -> ImageClassifier:
        if name not in networks:
            parsed = NetworkName.parse(name)
            networks[name] = folder.load(stage_of(parsed), parsed.network)
        return networks[name]

    keras.utils.clear_session()
    dataset = make_batches(images.test, config)
    attacks: Mapping[str, Attack] = config.table_attacks()
    for (attack, targets, epsilons), sources in _batches(set(cells) - set(measured_cells(folder))).items():
        measure(
            sources={source: load(source) for source in sources},
            targets={target: load(target) for target in targets},
            dataset=dataset,
            attacks={} if attack == CLEAN else {attack: attacks[attack]},
            epsilons={} if attack == CLEAN else {attack: epsilons},
            clean=attack == CLEAN,
            seed=config.seed,
            folder=folder.measured,
            stage=f"{attack} on {', '.join(sources) or 'no network'}",
        )
    return concatenate([Predictions.load(path) for path in folder.measurements()])


def measured_cells(folder: RunFolder) -> list[Cell]:
    """Everything that has been measured in a run."""
    frames = [Predictions.load(path).cells for path in folder.measurements()]
    return [Cell(*row) for row in pd.concat(frames)[list(Cell._fields)].itertuples(index=False)] if frames else []


def _batches(missing: set[Cell]) -> dict[tuple[str, tuple[str, ...], tuple[float, ...]], list[str]]:
    """Groups cells into the fewest calls of `measure`: sources by their targets; nothing is measured twice."""
    if not missing:
        return {}
    frame = pd.DataFrame(sorted(missing), columns=list(Cell._fields))
    # Clean images count as one source, the empty one.
    shown = frame.groupby(["attack", "source", "epsilon"]).target.agg(tuple).reset_index()
    radii = shown.groupby(["attack", "source", "target"]).epsilon.agg(tuple).reset_index()
    calls = radii.groupby(["attack", "target", "epsilon"]).source.agg(list)
    return {key: [source for source in sources if source] for key, sources in calls.items()}
