"""Which way of training is best? Trains a configuration's schemes from one start, and sets them side by side.

    python benchmarks/schemes.py benchmarks/schemes_search.yaml --data.root FOLDER --split validation
    python benchmarks/schemes.py benchmarks/schemes_confirmation.yaml --data.root FOLDER --split test --seeds 1 2 3

A scheme's name is that of its family and, after the last dash, of its adversarial weight: `pgd-w3`. Of each scheme,
means over its networks are given: the rate on clean images; on examples of the holdouts, which no scheme has met, by
the configuration's evaluation attacks; on its own white box and its partners' examples of 20 steps of PGD, and on
examples of the Square attack, a search without gradients that none has trained on (these three on fewer images). Leaks
counts the networks that classify their partner's examples, or their own, better than clean images.

Chosen is, among schemes that leak nothing and whose Square rate is not below their white box's (which would be
gradients that mislead), the highest `score`, the mean of clean rate and holdouts' rate: what the method is for, at its
price. `no_access`, the mean of these two and of the Square rate, counts attackers who may ask the network too; it was
added once the validation figures were known. Of each family the weight that is best stands for it.

All is kept in the run folders, runs/<name>/<seed>; the same command resumes what was stopped. The tables and the
picture are written beside them, or to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import pandas as pd
from matplotlib.figure import Figure

from satm_tf import experiment
from satm_tf.attacks import PGD, SquareAttack
from satm_tf.evaluation import Predictions, compare_schemes, label_leaking, mean_interval, measure
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.evaluation.predictions import concatenate
from satm_tf.evaluation.tables import with_views
from satm_tf.experiment import Config, Stage
from satm_tf.experiment import config as configuration
from satm_tf.experiment.config import make_attack
from satm_tf.experiment.images import make_batches
from satm_tf.models import ImageClassifier
from satm_tf.storage import write_text

SHARES = ["clean", "holdouts", "white_box", "partners", "square"]
OWN_IMAGES, QUERIES = 300, 100


def load(config: Config, scheme: str, networks: Iterable[str]) -> dict[str, ImageClassifier]:
    """Some networks of a scheme, or unseen ones, by their names in results."""
    names = [NetworkName(scheme, network) for network in networks]
    return {str(name): config.folder.load(Stage.of(name), name.network) for name in names}


def measured(config: Config, split: str) -> tuple[Predictions, Predictions]:
    """What every scheme's networks make of the holdouts' examples, and of their own, once all are trained."""
    images = experiment.train(config)
    folder = config.folder
    paths = [folder.path / f"{split}_{whose}.npz" for whose in ("holdouts", "own")]
    if not all(path.exists() for path in paths):
        examples = getattr(images, split)
        few = examples.limit(min(OWN_IMAGES, len(examples)), config.seed)
        epsilon = make_attack(config.attack).epsilon
        own = {"pgd_20": PGD(epsilon=epsilon, steps=20), "square": SquareAttack(epsilon=epsilon, queries=QUERIES)}
        holdouts = load(config, UNSEEN, config.holdouts)
        pairs = {scheme: load(config, scheme, config.networks_of(scheme)) for scheme in config.schemes}
        options: dict[str, Any] = {"seed": config.seed, "folder": folder.blocks}
        defended = {name: network for pair in pairs.values() for name, network in pair.items()}
        batches = make_batches(examples, config), make_batches(few, config)
        measure(sources=holdouts, targets=defended, attacks=config.table_attacks(), dataset=batches[0], **options).save(
            paths[0]
        )
        parts = [
            measure(sources=pair, targets=pair, attacks=own, dataset=batches[1], stage=scheme, **options)
            for scheme, pair in pairs.items()
        ]
        concatenate(parts).save(paths[1])
    unseen, own_examples = (Predictions.load(path) for path in paths)
    return unseen, own_examples


def points(unseen: Predictions, own: Predictions) -> pd.DataFrame:
    """The shares of each scheme, means over its networks, and how many networks leak."""
    rows = {whose: with_views(each.frame(ordered=False)) for whose, each in (("holdout", unseen), ("own", own))}
    rates = {
        "clean": rows["holdout"].query("view == 'clean'"),
        "holdouts": rows["holdout"].query("view == 'holdout'"),
        "white_box": rows["own"].query("view == 'white box' and attack == 'pgd_20'"),
        "partners": rows["own"].query("view == 'partners' and attack == 'pgd_20'"),
        "square": rows["own"].query("view == 'white box' and attack == 'square'"),
    }
    table = pd.DataFrame({name: each.groupby("scheme", sort=False).accuracy.mean() for name, each in rates.items()})
    leaking = label_leaking(own).query("leaks")
    leaks = leaking.target.drop_duplicates().map(lambda name: NetworkName.parse(name).scheme).value_counts()
    return table.assign(leaks=leaks.reindex(table.index, fill_value=0))


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """The schemes by what is chosen by, the best first, and whether they may be chosen."""
    family = table.index.str.rsplit("-", n=1).str[0]
    # A margin, lest the chance of two shares of a few hundred images excludes a scheme.
    sound = (table.leaks == 0) & (table.square >= table.white_box - 0.02)
    score, no_access = (
        table[shares].mean(axis=1) for shares in (["clean", "holdouts"], ["clean", "holdouts", "square"])
    )
    table = table.assign(family=family, score=score, no_access=no_access, sound=sound)
    return table.sort_values("score", ascending=False)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Clean against robust rates, a line for each family, its weights along it."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = [(colour, marker) for marker in "osD" for colour in [f"C{index}" for index in range(10)]]
    families = list(dict.fromkeys(table.family.sort_values()))
    for family, (colour, marker) in zip(families, styles, strict=False):
        own = table[table.family == family].sort_index()
        for axes, share in ((left, "holdouts"), (right, "white_box")):
            axes.plot(100 * own.clean, 100 * own[share], color=colour, marker=marker, label=family)
    for axes, title in ((left, "examples of holdouts"), (right, "own examples, PGD of 20 steps (white box)")):
        axes.set(title=title, xlabel="rate on clean images, %", ylabel=f"rate on {title.split(',')[0]}, %")
        axes.grid(alpha=0.3)
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    figure.savefig(path, dpi=110)


def compared(by_seed: dict[int, pd.DataFrame], first: str) -> pd.DataFrame:
    """What one scheme is ahead of the others, in points: the mean over seeds, with Student's 95 % interval."""
    rows = []
    for other in next(iter(by_seed.values())).index:
        for share in SHARES:
            ahead = [100 * (table.loc[first, share] - table.loc[other, share]) for table in by_seed.values()]
            if other != first:
                low, high = mean_interval(ahead)
                rows.append({"over": other, "share": share, "mean": sum(ahead) / len(ahead), "low": low, "high": high})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="A YAML file, as satm-tf train --config takes it.")
    parser.add_argument("--split", choices=("validation", "test"), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--compare", metavar="SCHEME", help="Set this one against all others, seed by seed.")
    parser.add_argument("--out", type=Path, help="Where to; runs/<name> if not given.")
    given, options = parser.parse_known_args()
    by_seed, paired = {}, []
    for seed in given.seeds:
        keras.utils.clear_session()
        config = configuration.from_arguments(["--config", given.config, *options, "--seed", str(seed)])
        out = given.out or Path("runs") / config.name
        out.mkdir(parents=True, exist_ok=True)
        config = dataclasses.replace(config, run_dir=str(Path("runs") / config.name / str(seed)))
        unseen, own = measured(config, given.split)
        by_seed[seed] = points(unseen, own)
        if given.compare:
            others = [scheme for scheme in config.schemes if scheme != given.compare]
            tests = [compare_schemes(unseen, other, given.compare) for other in others]
            named = [
                test.rename(columns={other: "other"}).assign(over=other)
                for test, other in zip(tests, others, strict=True)
            ]
            paired.append(pd.concat(named).assign(seed=seed))
    all_points = pd.concat(by_seed, names=["seed", "scheme"])
    write_text(out / f"{given.split}_points.csv", all_points.to_csv(float_format="%.4f"))
    table = ranked(all_points.groupby("scheme", sort=False).mean())
    write_text(out / f"{given.split}_ranked.csv", table.to_csv(float_format="%.4f"))
    draw(table, out / f"{given.split}_curves.png")
    print(table.drop(columns="family").round(4).to_string())
    if given.compare:
        write_text(out / "paired.csv", pd.concat(paired).to_csv(index=False, float_format="%.4g"))
        ahead = compared(by_seed, given.compare)
        write_text(out / "ahead.csv", ahead.to_csv(index=False, float_format="%.2f"))
        print(f"\n{given.compare}, points ahead of\n{ahead.round(2).to_string(index=False)}")


if __name__ == "__main__":
    main()
