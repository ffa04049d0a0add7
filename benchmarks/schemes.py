"""Which way of training is best at equal cost? Trains a configuration's schemes from one start, and measures a ladder.

    python benchmarks/schemes.py benchmarks/schemes_search.yaml --data.root FOLDER --split validation --seeds 0 1
    python benchmarks/schemes.py benchmarks/schemes_confirmation.yaml --data.root FOLDER --split test --twins \\
        --seeds 2 3 4

A scheme's name is that of its family and, after the last dash, of its adversarial weight: `pgd-w1`. For each scheme,
means over its networks are given: accuracy on clean images; on each measured rung of the ladder (an image counts if it
is right under all attacks and sources of the rung); under Square with 100 queries; and under white-box PGD with 20
steps. The last two are on 300 images.

The rule, written down before the first run. The score of a scheme is its **worst rung**: the least of unseen, defended,
queries and, on test images, twin. Start, the attacker who has the very weights from which training started, stands
beside: it exists where these are published, as on real faces. `transfer` is the worst rung without queries. Schemes
are compared **at equal clean accuracy**: the points of a family, one for each weight, and the undefended point make a
curve; its value at a clean accuracy is the highest score among its points that are at least as accurate, and where the
line between two points crosses it. The curves are read at 1, 3 and 5 points under the undefended accuracy. Among
families that are sound (their Square accuracy is not more than 2 points below their white-box one, which would be
gradients that mislead), the one with the highest worst rung at 3 points is chosen, on validation images over two seeds.
The chosen one and its competitors run once more from three other seeds on test images, each with the weight that had
the best mean of clean accuracy and worst rung.

All results are in the run folders, runs/<name>/<seed>; re-run the same command to resume. Tables and pictures are
written next to them, or to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from satm_tf import experiment
from satm_tf.attacks import PGD, SquareAttack
from satm_tf.evaluation import Predictions, compare_ladder, ladder_table, mean_interval, measure
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.evaluation.predictions import concatenate
from satm_tf.evaluation.rungs import DEFENDED, QUERIES, START, TWIN, UNSEEN_RUNG, Group
from satm_tf.experiment import Config, Stage
from satm_tf.experiment import config as configuration
from satm_tf.experiment.config import make_attack
from satm_tf.experiment.images import make_batches
from satm_tf.models import ImageClassifier
from satm_tf.storage import write_text

TRANSFER = [UNSEEN_RUNG, DEFENDED, TWIN]
COLUMNS = ["clean", *TRANSFER, QUERIES, "transfer", "worst", START, "white_box"]
OWN_IMAGES, ASKED = 300, 100
POINTS_UNDER = (1, 3, 5)
UNDEFENDED = "undefended-w0"


def networks_of(config: Config, scheme: str) -> dict[str, ImageClassifier]:
    """The networks of a scheme, by their names in results."""
    names = [NetworkName(scheme, network) for network in config.networks_of(scheme)]
    return {str(name): config.folder.load(Stage.of(name), name.network) for name in names}


def attackers(config: Config, twin: Config | None) -> tuple[dict[str, ImageClassifier], dict[str, Group]]:
    """The models that craft, and the descriptions of their groups."""
    folder, groups = config.folder, dict(config.groups)
    unseen = [NetworkName(UNSEEN, holdout) for holdout in config.holdouts]
    models = {str(name): folder.load(Stage.of(name), name.network) for name in unseen}
    models |= {str(name): folder.load(config.stage_of(name), name.network) for name in config.surrogate_names}
    if twin is not None:
        for scheme in twin.schemes:
            group = f"{TWIN}.{scheme}"
            groups[group] = Group(TWIN, scheme)
            named = networks_of(twin, scheme)
            models |= {f"{group}/{NetworkName.parse(name).network}": each for name, each in named.items()}
    return models, groups


def measured(config: Config, split: str, twin: Config | None) -> tuple[Predictions, Predictions]:
    """Predictions of every scheme's networks for the attackers' examples and their own, after training."""
    images = experiment.train(config)
    folder = config.folder
    paths = [folder.path / f"{split}_{whose}.npz" for whose in ("ladder", "own")]
    if not all(path.exists() for path in paths):
        examples = getattr(images, split)
        few = examples.limit(min(OWN_IMAGES, len(examples)), config.seed)
        epsilon = make_attack(config.attack).epsilon
        own = {"pgd_20": PGD(epsilon=epsilon, steps=20), "square": SquareAttack(epsilon=epsilon, queries=ASKED)}
        defended = {name: each for scheme in config.schemes for name, each in networks_of(config, scheme).items()}
        options: dict[str, Any] = {"seed": config.seed, "folder": folder.blocks}
        sources, groups = attackers(config, twin)
        measure(
            sources=sources,
            targets=defended,
            attacks=config.table_attacks(),
            dataset=make_batches(examples, config),
            groups=groups,
            **options,
        ).save(paths[0])
        batches = make_batches(few, config)
        parts = [
            measure(sources={name: each}, targets={name: each}, attacks=own, dataset=batches, stage=name, **options)
            for name, each in defended.items()
        ]
        concatenate(parts).save(paths[1])
    ladder, own_examples = (Predictions.load(path) for path in paths)
    return ladder, own_examples


def points(ladder: Predictions, own: Predictions) -> pd.DataFrame:
    """The accuracies of each scheme, means over its networks."""
    table = ladder_table(ladder, by="scheme").xs("accuracy", axis="columns", level="value")
    frame = own.frame(ordered=False)
    frame["scheme"] = [NetworkName.parse(target).scheme for target in frame.target]
    by_attack = frame.pivot_table(index="scheme", columns="attack", values="accuracy")
    table = table.drop(columns="worst").assign(queries=by_attack.square, white_box=by_attack.pgd_20)
    transfer = table[table.columns.intersection(TRANSFER)].min(axis=1)
    table = table.assign(transfer=transfer, worst=np.minimum(transfer, table.queries))
    return table[[column for column in COLUMNS if column in table]]


def families(table: pd.DataFrame) -> pd.Series:
    """The family of each scheme."""
    return pd.Series(table.index.str.rsplit("-", n=1).str[0], index=table.index)


def at_clean(curve: pd.DataFrame, score: str, clean: float) -> float:
    """The value of a family's curve at a clean accuracy, by the rule; NaN if it never reaches that accuracy."""
    curve = curve.sort_values("clean")
    reached = curve[score][curve.clean >= clean]
    if reached.empty:
        return np.nan
    return float(max(reached.max(), np.interp(clean, curve.clean, curve[score])))


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """Each family at equal clean accuracy, the best at 3 points under the undefended one first."""
    undefended = table.loc[UNDEFENDED]
    rows = {}
    for family, own in table.groupby(families(table), sort=False):
        if UNDEFENDED in own.index:
            continue
        curve = pd.concat([own, undefended.to_frame().T])
        row: dict[str, Any] = {
            f"{score}_{under}": at_clean(curve, score, undefended.clean - under / 100)
            for score in ("worst", "transfer")
            for under in POINTS_UNDER
        }
        row["sound"] = bool((own.queries >= own.white_box - 0.02).all())
        row["chosen"] = own[["clean", "worst"]].mean(axis=1).idxmax()
        rows[family] = row
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("family")
    return frame.sort_values(f"worst_{POINTS_UNDER[1]}", ascending=False)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Clean accuracy against the worst rung, with and without queries: a line for each family, named at its end."""
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    undefended = table.loc[UNDEFENDED]
    styles = [(colour, marker) for marker in "osD" for colour in [f"C{index}" for index in range(10)]]
    for axes, score in zip(figure.subplots(1, 2), ("worst", "transfer"), strict=True):
        for (family, own), (colour, marker) in zip(table.groupby(families(table), sort=False), styles, strict=False):
            curve = pd.concat([own, undefended.to_frame().T]).sort_values("clean") * 100
            control = len(own) == 1 and UNDEFENDED not in own.index
            shown = 100 * own if control else curve
            axes.plot(shown.clean, shown[score], color=colour, marker=marker, ms=5, lw=0 if control else 1.5)
            end = 100 * own.sort_values("clean").iloc[0]
            axes.annotate(
                family, (end.clean, end[score]), xytext=(4, 4), textcoords="offset points", fontsize=7, color=colour
            )
        title = "worst rung" if score == "worst" else "worst rung without queries"
        axes.set(title=title, xlabel="accuracy on clean images, %", ylabel=f"accuracy on the {title}, %")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def ahead_of(by_seed: dict[int, pd.DataFrame], first: str) -> pd.DataFrame:
    """The lead of one scheme over the others, in points: the mean over seeds, with Student's 95 % interval."""
    rows = []
    for other in next(iter(by_seed.values())).index.drop(first):
        for share in next(iter(by_seed.values())).columns:
            ahead = [100 * (table.loc[first, share] - table.loc[other, share]) for table in by_seed.values()]
            low, high = mean_interval(ahead)
            rows.append({"over": other, "share": share, "mean": sum(ahead) / len(ahead), "low": low, "high": high})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="A YAML file, as satm-tf train --config takes it.")
    parser.add_argument("--split", choices=("validation", "test"), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--twins", action="store_true", help="The networks of the next seed attack those of this one.")
    parser.add_argument("--compare", metavar="SCHEME", help="Compare this scheme with all others, seed by seed.")
    parser.add_argument("--out", type=Path, help="Output folder; runs/<name> if not given.")
    given, options = parser.parse_known_args()
    if given.twins and len(given.seeds) < 2:
        parser.error(f"--twins needs a second seed, whose networks attack those of the first. Received: {given.seeds}")
    configs = {}
    for seed in given.seeds:
        config = configuration.from_arguments(["--config", given.config, *options, "--seed", str(seed)])
        configs[seed] = dataclasses.replace(config, run_dir=str(Path("runs") / config.name / str(seed)))
    out = given.out or Path("runs") / next(iter(configs.values())).name
    out.mkdir(parents=True, exist_ok=True)
    if given.twins:
        for config in configs.values():
            experiment.train(config)
            keras.utils.clear_session()
    by_seed, paired = {}, []
    for seed, after in zip(given.seeds, [*given.seeds[1:], given.seeds[0]], strict=True):
        keras.utils.clear_session()
        ladder, own = measured(configs[seed], given.split, configs[after] if given.twins else None)
        by_seed[seed] = points(ladder, own)
        for other in configs[seed].schemes if given.compare else ():
            if other != given.compare:
                test = compare_ladder(ladder, other, given.compare).rename(columns={other: "other"})
                paired.append(test.assign(over=other, seed=seed))
    all_points = pd.concat(by_seed, names=["seed", "scheme"])
    write_text(out / f"{given.split}_points.csv", all_points.to_csv(float_format="%.4f"))
    means = all_points.groupby("scheme", sort=False).mean()
    table = curves(means)
    write_text(out / f"{given.split}_curves.csv", table.to_csv(float_format="%.4f"))
    draw(means, out / f"{given.split}_curves.png")
    print(means.mul(100).round(1).to_string(), table.round(4).to_string(), sep="\n\n")
    if given.compare:
        write_text(out / f"{given.split}_paired.csv", pd.concat(paired).to_csv(index=False, float_format="%.4g"))
        ahead = ahead_of(by_seed, given.compare)
        write_text(out / f"{given.split}_ahead.csv", ahead.to_csv(index=False, float_format="%.2f"))
        print(f"\n{given.compare}, points ahead of\n{ahead.round(2).to_string(index=False)}")


if __name__ == "__main__":
    main()
