"""The cost of stages, measurements and checks, estimated before they start."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from satm_tf.configurable import plural
from satm_tf.evaluation.names import NetworkName
from satm_tf.experiment.config import Config, NetworkConfig
from satm_tf.experiment.precision import training_step
from satm_tf.experiment.run_folder import CO_TRAIN
from satm_tf.experiment.running import check
from satm_tf.experiment.work import NOTHING, Cost, Network, Timed, crafted_bytes, finished, parts
from satm_tf.training import resolve_precision

_FACE_BYTES = 4_000
# The size of the batch on which networks are timed: 64 images of 48 x 48.
_PIXELS = 64 * 48**2


@functools.cache
def time_network(described: NetworkConfig, size: int, batch: int, policy: str, num_classes: int = 8) -> Network:
    """Builds a network, without its published weights, and times it on one batch of noise, three times."""
    if not tf.config.list_physical_devices("GPU"):
        batch = max(1, min(batch, _PIXELS // size**2))  # Fewer already keep a processor busy.
    began = time.monotonic()
    step, weights = training_step(described, size, batch, policy, num_classes)
    first = time.monotonic() - began
    times = []
    for _ in range(3):
        began = time.monotonic()
        step()
        times.append(time.monotonic() - began)
    keras.utils.clear_session()
    return Network(float(np.median(times)) / batch, first, weights)


def timed(config: Config) -> Timed:
    """The cost of each network of a configuration on this machine, by its name."""
    options = config.data.image_size, config.co_train.batch_size, resolve_precision(config.precision)
    return lambda name: time_network(config.described_network(NetworkName.parse(name)), *options)


def describe(config: Config) -> str:
    """Describes what `experiment.run` still has to do and its approximate cost; writes nothing.

    Args:
        config: The experiment.

    Raises:
        ValueError: As `experiment.check` does.
        FileNotFoundError: As `experiment.check` does.
    """
    images, found = check(config)
    folder = config.folder
    costs = parts(config, found, timed(config))
    done = finished(config) | {part for part, cost in costs.items() if cost == NOTHING}
    to_do = {part: int(part not in done) for part in costs}
    rows, whole = table(costs, to_do)
    drawn = 0.0 if folder.synthetic_faces.exists() or config.data.root else data_bytes(config)
    return "\n".join(
        [
            f"{config.name}, in {folder}: {found.train:,} training, {found.validation:,} validation and "
            f"{plural(found.test, 'test image')} of {images.num_classes} classes",
            *describe_networks(config),
            *(
                f"  {scheme}: the examples that are crafted once take at most {size / 1e6:,.1f} MB while stages train"
                for scheme in (stage.name for stage in config.stages() if stage.kind == CO_TRAIN)
                if (size := crafted_bytes(config, scheme, found))
            ),
            *rows,
            summary(whole._replace(bytes=whole.bytes + drawn)),
        ]
    )


def describe_networks(config: Config) -> list[str]:
    """A line for each network: its backbone and size."""
    of = timed(config)
    return [
        f"  {name + ': ' + described.described:<60}{of(name).weights:>14,} parameters"
        for name, described in config.all_networks.items()
    ]


def table(costs: Mapping[str, Cost], to_do: Mapping[str, int]) -> tuple[list[str], Cost]:
    """Lines of a table, and the total cost.

    Args:
        costs: The cost of each part.
        to_do: How often each still has to be done.
    """
    lines = [f"  {'stage':<50}{'to do':>6}{'steps each':>12}{'s a step':>10}{'minutes':>9}{'MB':>8}"]
    left = []
    for part, each in costs.items():
        times = to_do[part]
        left.append(Cost(times * each.steps, times * each.seconds, times * each.bytes, each.passing if times else 0.0))
        lines.append(
            f"  {part:<50}{times or '-':>6}{each.steps:>12,}{each.seconds / max(each.steps, 1):>10.3f}"
            f"{left[-1].seconds / 60:>9.1f}{left[-1].bytes / 1e6:>8.0f}"
        )
    return lines, in_all(left)


def in_all(costs: Sequence[Cost]) -> Cost:
    """The sum; temporary space is counted once."""
    return Cost(
        sum(each.steps for each in costs),
        sum(each.seconds for each in costs),
        sum(each.bytes for each in costs),
        max((each.passing for each in costs), default=0.0),
    )


def summary(whole: Cost) -> str:
    """The sentence on time and disk."""
    minutes = whole.seconds / 60
    shown = f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"
    return (
        f"About {shown} in all on this machine, estimated from one batch of each network (the real time may be half or "
        f"twice that); at most {(whole.bytes + whole.passing) / 1e9:.2f} GB on disk."
    )


def data_bytes(config: Config) -> float:
    """The disk space of the drawn images."""
    drawn = config.data.format == "synthetic_faces"
    return float(_FACE_BYTES * config.data.num_subjects * config.data.images_per_subject) if drawn else 0.0
