"""Accuracy of each scheme on real faces, at two epsilons, from finished runs of one preset, one for each seed.

    for seed in 0 1 2; do
        satm-tf train --config utkface_age --data.root FOLDER --seed $seed --run_dir runs/utkface_age/$seed
    done
    python benchmarks/faces.py runs/utkface_age/0 runs/utkface_age/1 runs/utkface_age/2 --out docs/results/utkface_age

The same for `utkface_gender`.

For each epsilon, `test_points.csv` gives the accuracy of each network of each scheme on clean images and on each rung
of the ladder. An image counts if it is right under all attacks and sources of the rung with at most this epsilon.
Queries use the epsilon of training, so only the larger one has them. Rows of seeds whose runs are not given stay as
they are in `--out`.

The rule, written before the first figure was seen. The score of a scheme is its worst rung without white box, as
`worst` has it: image by image the strongest of all attackers. `recommended` is set against every other scheme, on the
same images: network by network with McNemar's exact test within a seed, and as the mean of the differences between
seeds, with Student's 95 % interval. Clean accuracy stands beside, as a scheme that pays for its score has to show it.
The control is `undefended`, which trains on for as many epochs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from satm_tf.evaluation import Predictions, compare_ladder, ladder_table, mean_interval
from satm_tf.evaluation.names import NetworkName
from satm_tf.evaluation.rungs import BESIDE, RUNGS
from satm_tf.experiment.run_folder import RunFolder
from satm_tf.storage import write_text

EPSILONS = {"4/256": 4 / 256, "8/256": 8 / 256}
CHOSEN = "recommended"
KEYS = ["epsilon", "seed", "scheme", "network"]
COLUMNS = ["clean", "unseen", "public_weights", "start", "defended", "queries", "worst", "white_box"]


def draw(means: pd.DataFrame, path: Path) -> None:
    """A panel for each epsilon: a row for each scheme, a dot for each attacker, the worst rung at the left end."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    labels = {name: rung.label for name, rung in {**BESIDE, **RUNGS}.items()} | {"worst": "all of these"}
    for axes, epsilon in zip(figure.subplots(1, 2, sharey=True), EPSILONS, strict=True):
        table = 100 * means.loc[epsilon]
        for index, column in enumerate(table.columns.drop("white_box", errors="ignore")):
            marker = "s" if column == "clean" else "X" if column == "worst" else "o"
            axes.plot(table[column], range(len(table)), marker, color=f"C{index}", ms=8, label=labels[column])
        axes.set_yticks(range(len(table)), table.index)
        axes.set(title=f"epsilon {epsilon}", xlabel="accuracy, %", xlim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].invert_yaxis()
    handles, names = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=110)


def merged(path: Path, new: pd.DataFrame, digits: str) -> pd.DataFrame:
    """Replaces the rows of the new frame's seeds in a table, and returns all of it."""
    if path.exists():
        old = pd.read_csv(path)
        new = pd.concat([old[~old.seed.isin(new.seed)], new])
    keys = [key for key in KEYS if key in new]
    new = new.sort_values(["seed"], kind="stable")[[*keys, *new.columns.drop(keys)]]
    write_text(path, new.to_csv(index=False, float_format=digits))
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="Finished runs of the same preset, one for each seed.")
    parser.add_argument("--out", type=Path, required=True, help="The folder of tables and pictures.")
    given = parser.parse_args()
    points, paired = [], []
    for run in given.runs:
        predictions = Predictions.load(RunFolder(run).predictions)
        for name, epsilon in EPSILONS.items():
            table = ladder_table(predictions, epsilon=epsilon).xs("accuracy", axis="columns", level="value")
            names = [NetworkName.parse(target) for target in table.index]
            keys = {"epsilon": name, "seed": int(run.name)}
            keys |= {"scheme": [each.scheme for each in names], "network": [each.network for each in names]}
            points.append(table.dropna(axis=1, how="all").assign(**keys))
            for other in dict.fromkeys(keys["scheme"]):
                if other != CHOSEN:
                    test = compare_ladder(predictions, other, CHOSEN, epsilon=epsilon).rename(columns={other: "other"})
                    paired.append(test.assign(over=other, seed=int(run.name), epsilon=name))
    given.out.mkdir(parents=True, exist_ok=True)
    every = merged(given.out / "test_points.csv", pd.concat(points)[[*KEYS, *COLUMNS]], "%.4f").set_index(KEYS)
    merged(given.out / "paired.csv", pd.concat(paired), "%.4g")
    by_network = every.groupby(["epsilon", "network", "scheme"], sort=False).mean()
    means = every.groupby(["epsilon", "scheme"], sort=False).mean()
    draw(means, given.out / "ladder.png")
    rows = []
    for name in EPSILONS:
        by_seed = every.worst.loc[name].groupby(["scheme", "seed"], sort=False).mean().unstack("seed")
        for other in by_seed.index.drop(CHOSEN):
            ahead = 100 * (by_seed.loc[CHOSEN] - by_seed.loc[other])
            low, high = mean_interval(ahead.tolist())
            rows.append({"epsilon": name, "over": other, "worst": ahead.mean(), "low": low, "high": high})
    ahead = pd.DataFrame(rows)
    write_text(given.out / "ahead.csv", ahead.to_csv(index=False, float_format="%.2f"))
    tables = [by_network.mul(100).round(1).to_string(), means.mul(100).round(1).to_string()]
    print(*tables, ahead.round(1).to_string(index=False), sep="\n\n")


if __name__ == "__main__":
    main()
