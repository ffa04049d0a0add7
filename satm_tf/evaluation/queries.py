"""The rung of queries: a random search that only queries the target, from scratch and from the best example."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from numpy.typing import NDArray

from satm_tf.attacks import Attack, SquareAttack
from satm_tf.bars import Bar
from satm_tf.evaluation.blocks import Blocks
from satm_tf.evaluation.names import NetworkName
from satm_tf.evaluation.predictions import NOT_MEASURED, Cell, Predictions, concatenate
from satm_tf.evaluation.rungs import QUERIES, RUNGS, Group, rung_of
from satm_tf.evaluation.stand_ins import StandIns

SQUARE, WARM = "square", "transfer+square"


def measure_queries(
    *,
    targets: Mapping[str, Any],
    sources: Mapping[str, Any],
    dataset: tf.data.Dataset,
    chosen: NDArray[np.bool_],
    labels: NDArray[np.int32],
    attacks: Mapping[str, Attack],
    epsilon: float,
    budgets: Sequence[int],
    groups: Mapping[str, Group] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    images_print: str = "",
    stage: str = "queries",
) -> Predictions:
    """Attacks each target with Square, and with Square from the best example of all sources on the target's ladder.

    One search with the largest budget gives the result at every smaller one. Each transferred example that is tried
    costs one query. Targets in the group "holdout" are left out.

    Args:
        targets: The networks that are attacked, by name.
        sources: The attacker's models, by name; each target is attacked with those on its ladder.
        dataset: Batches of the images that are attacked.
        chosen: Which of all images these are, bool `[images]`.
        labels: The labels of all images, int32 `[images]`.
        attacks: The attacks that craft the transferred examples; only those in L-infinity are used.
        epsilon: The radius, in L-infinity.
        budgets: The numbers of queries, in any order.
        groups, seed, folder: As `measure` takes them.
        images_print: What identifies images and labels, for files in the folder.
        stage: The label of the progress bar.

    Returns:
        Cells with the source "queries" and the attacks `square-<budget>` and `transfer+square-<budget>`;
        `NOT_MEASURED` for images that were not chosen.

    Raises:
        ValueError: If more transferred examples are to be tried than the smallest budget allows.

    Source:
        Andriushchenko et al., "Square Attack", ECCV 2020; the start as in the query attacks of TransferBench.
    """
    budgets = sorted(set(budgets))
    attack = SquareAttack(epsilon=epsilon, queries=budgets[-1])
    crafting = {name: each for name, each in attacks.items() if each.norm == "linf"}
    searches: list[tuple[str, str, list[str]]] = []
    for target in targets:
        if NetworkName.parse(target).unseen:
            continue
        ladder = [name for name in sources if rung_of(name, target, groups) in RUNGS]
        searches += [(target, SQUARE, []), *([(target, WARM, ladder)] if ladder and crafting else [])]
        if len(ladder) * len(crafting) > budgets[0]:
            raise ValueError(
                f"Trying {len(crafting)} attacks of {len(ladder)} sources takes one query for each pair; the smallest "
                f"budget must allow that. Received: {budgets}"
            )
    blocks = Blocks(folder, {**sources, **targets})

    def searching(count: int, network: Any) -> Callable[..., tf.Tensor]:
        """The search on a target from this many examples; it gives the target's classes `[budgets, images]`."""

        def search(images: tf.Tensor, classes: tf.Tensor, key: tf.Tensor, starts: list[tf.Tensor]) -> tf.Tensor:
            found = attack.search(network, images, classes, key, starts=starts, budgets=budgets)
            return tf.stack([tf.argmax(network(each, training=False), -1) for each in found])

        if getattr(network, "remote", False):
            return search
        images, classes = dataset.element_spec
        signature = [images, classes, tf.TensorSpec([2], tf.int32), [images] * count]
        return tf.function(search, input_signature=signature, autograph=False)

    stand_ins = StandIns([*sources.values(), *targets.values()])
    num_classes = next(iter(targets.values())).num_classes

    def make(
        target: str, kind: str, makers: Sequence[tuple[str, str]], crafted: dict[Any, tf.Tensor], *batch: tf.Tensor
    ) -> Predictions:
        images, classes, key = batch
        for source, name in makers:
            if (source, name) not in crafted:
                craft = stand_ins.compiled(name, crafting[name].compiled, sources[source])
                crafted[source, name] = craft(images, classes, epsilon=epsilon, seed=key)
        starts = [crafted[each] for each in makers]
        search = stand_ins.compiled(len(starts), functools.partial(searching, len(starts)), targets[target])
        found = search(images, classes, key, starts).numpy()
        cells = pd.DataFrame([Cell(f"{kind}-{budget}", epsilon, QUERIES, target) for budget in budgets])
        small = found.astype(np.min_scalar_type(-num_classes))
        return Predictions(cells, small, classes.numpy().astype(np.int32), num_classes)

    answers: list[list[Predictions]] = [[] for _ in searches]
    with Bar(len(searches) * len(dataset), stage, "batch") as bar:
        for index, (images, classes) in enumerate(dataset):
            key = tf.constant([seed, index])
            crafted: dict[Any, tf.Tensor] = {}  # once for all targets, and no longer than this batch
            for (target, kind, ladder), answer in zip(searches, answers, strict=True):
                makers = [(source, name) for source in ladder for name in crafting]
                block = blocks.get(
                    functools.partial(make, target, kind, makers, crafted, images, classes, key),
                    label=(kind, f"{epsilon:g}", target, f"batch {index}"),
                    attack=attack,
                    epsilon=epsilon,
                    source=[
                        budgets,
                        {name: blocks.prints.get(name) for name in ladder},
                        [repr(each) for each in crafting.values()],
                    ],
                    targets=[target],
                    images=images_print,
                    seed=seed,
                )
                answer.append(block)
                bar.update()
    parts = []
    for answer in answers:
        predicted = np.full([len(budgets), len(labels)], NOT_MEASURED, answer[0].predicted.dtype)
        predicted[:, chosen] = np.concatenate([block.predicted for block in answer], axis=1)
        parts.append(dataclasses.replace(answer[0], predicted=predicted, labels=labels))
    return concatenate(parts)
