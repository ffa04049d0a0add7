"""Would another countermeasure have done as well? Those of the paper's Section 2.2, at equal clean accuracy.

    python benchmarks/countermeasures.py benchmarks/countermeasures.yaml --data.root FOLDER \\
        --out docs/results/fashion_mnist

Trains the schemes of the configuration, and fits every detector to the networks of `undefended`: on training images and
adversarial examples of them that the other network has made (MI-FGSM). The detector `null_class` is of the scheme of
that name. Then all are measured on the same test images. An adversarial image is withstood if it is classified
correctly or rejected; a clean image has to be classified correctly and not rejected.

The rule, written before the first run. **Equal clean accuracy**: what can be set may give up 3 points of the undefended
accuracy on validation images. A detector's threshold lets 3 % of the validation images lie above it. Of the schemes
that differ in a weight only, `<name>_<weight>`, the one with the largest weight that gives up no more is shown. The
other schemes are shown as they are; their clean accuracy says what they cost.

- `unseen`, `public_weights`, `defended`, `start`: the rungs that the configuration has. Their examples are made on
  models without the countermeasure.
- `same`: the attacker knows the countermeasure and lacks the weights. The partner network has it too, and its MI-FGSM
  and APGD examples fool it and evade its own detector.
- `queries`: Square with 100 queries. A rejection is an answer that the attacker sees and avoids.
- `white_box`: PGD of 20 steps from the cross-entropy of the classes, as if nothing were known.
- `white_box_knowing`: APGD of 20 steps from the margin of the logits, in which a rejection is no success; it keeps the
  best of its steps, where the last of PGD may be beyond a threshold again. On distilled networks this is the attack of
  Carlini and Wagner's kind, which a saturated softmax does not stop.
- `worst`: image by image, all of these without the two white boxes.

Queries, white boxes and `worst` are on the first `--images` of the test images. Writes `countermeasures.csv`, a row for
each network, and `detectors.csv`, ROC areas and shares above the threshold, of a rung under its first source, to --out.
The detectors were fitted to the attack and epsilon of the rungs, so what they are tested for is another source.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from satm_tf import detection, experiment
from satm_tf.attacks import APGD, MIFGSM, PGD, Attack, SquareAttack
from satm_tf.data import Examples
from satm_tf.detection.base import in_batches
from satm_tf.evaluation.names import UNSEEN, NetworkName
from satm_tf.evaluation.rungs import rung_of
from satm_tf.experiment import Config, Stage
from satm_tf.experiment import config as configuration
from satm_tf.experiment.config import make_attack
from satm_tf.experiment.images import make_batches
from satm_tf.models import ImageClassifier
from satm_tf.storage import write_text

Model = ImageClassifier | detection.Guarded
POINTS, QUERIES, STEPS = 0.03, 100, 20
DETECTORS = ("feature_classifier", "principal_components", "density_uncertainty", "quantised_rbf")
LADDER = ("unseen", "public_weights", "defended", "start", "same", "queries")


def arrays(examples: Examples, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels."""
    images, labels = zip(*make_batches(examples, config).as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def trained(config: Config, scheme: str) -> dict[str, ImageClassifier]:
    """The networks of a scheme."""
    names = [NetworkName(scheme, network) for network in config.networks_of(scheme)]
    return {name.network: config.folder.load(Stage.of(name), name.network) for name in names}


def predicted(model: Model, images: np.ndarray) -> np.ndarray:
    """The classes `[images]`; one more than there are means "rejected"."""
    return in_batches(model, images).argmax(-1)


def withstood(model: Model, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each adversarial image is classified correctly or rejected."""
    classes = predicted(model, images)
    return (classes == labels) | (classes == model.num_classes - 1 if isinstance(model, detection.Guarded) else False)


def knowing(attack: type[Attack], model: Model, **options: Any) -> Attack:
    """An attack from the logits, for which a rejection is no success."""
    loss = "evading_margin" if isinstance(model, detection.Guarded) else "margin"
    return attack(**{"loss": loss, **options})


def guarded(config: Config, epsilon: float, splits: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """The networks of `undefended` and `null_class` with each of their detectors, by its name."""
    found: dict[str, Any] = {}
    crafter = MIFGSM(epsilon=epsilon)
    for scheme, names in (("undefended", DETECTORS), ("null_class", ("null_class",))):
        networks = trained(config, scheme)
        for name, network in networks.items():
            others = [other for key, other in networks.items() if key != name]
            adversarial = np.concatenate([crafter.craft(other, *splits["train"]) for other in others])
            for kind in names:
                detector = detection.get(kind).fit(
                    network,
                    splits["train"][0],
                    adversarial,
                    validation=splits["validation"][0],
                    rejected=POINTS,
                    seed=config.seed,
                )
                found.setdefault(kind, {})[name] = detection.Guarded(network, detector)
    return found


def chosen(defences: dict[str, dict[str, Any]], images: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, Any]]:
    """Of the schemes that differ in a weight, the one that the rule takes."""
    clean = {name: np.mean([predicted(m, images) == labels for m in its.values()]) for name, its in defences.items()}
    kept: dict[str, dict[str, Any]] = {}
    for name, its in defences.items():
        family, _, weight = name.rpartition("_")
        if not weight[:1].isdigit():
            kept[name] = its
        elif clean[name] >= clean["undefended"] - POINTS:
            kept = {key: value for key, value in kept.items() if not key.startswith(f"{family}_")} | {name: its}
    print(pd.Series(clean).mul(100).round(1).to_string(), f"shown: {', '.join(kept)}", sep="\n")
    return kept


def measure(config: Config, defences: dict[str, dict[str, Any]], epsilon: float, few: int, examples: Examples) -> Any:
    """A row for each countermeasure and network, and one for each detector, network and attacker."""
    images, labels = arrays(examples, config)
    some, its_labels = images[:few], labels[:few]
    unseen = [NetworkName(UNSEEN, holdout) for holdout in config.holdouts]
    sources = {str(name): config.folder.load(Stage.of(name), name.network) for name in unseen}
    sources |= {str(name): config.folder.load(config.stage_of(name), name.network) for name in config.surrogate_names}
    crafted = {
        (name, attack): each.craft(source, images, labels)
        for name, source in sources.items()
        for attack, each in config.table_attacks().items()
    }
    rows, told = [], []
    for defence, networks in defences.items():
        for name, model in networks.items():
            examples_of: dict[str, list[np.ndarray]] = {}
            for (source, _), adversarial in crafted.items():
                examples_of.setdefault(rung_of(source, f"any/{name}", config.groups), []).append(adversarial)
            examples_of["same"] = [
                knowing(attack, other, epsilon=epsilon, steps=STEPS).craft(other, images, labels)
                for key, other in networks.items()
                if key != name
                for attack in (MIFGSM, APGD)
            ]
            plain = model.network if isinstance(model, detection.Guarded) else model
            own = {
                "queries": (model, knowing(SquareAttack, model, epsilon=epsilon, queries=QUERIES)),
                "white_box": (plain, PGD(epsilon=epsilon, steps=STEPS)),
                "white_box_knowing": (model, knowing(APGD, model, epsilon=epsilon, steps=STEPS)),
            }
            own_examples = {key: attack.craft(target, some, its_labels) for key, (target, attack) in own.items()}
            right = {
                rung: np.all([withstood(model, each, labels) for each in its], axis=0)
                for rung, its in examples_of.items()
                if rung in LADDER
            }
            right |= {key: withstood(model, each, its_labels) for key, each in own_examples.items()}
            worst = np.all([right[rung][:few] for rung in LADDER if rung in right], axis=0)
            rates = {rung: values.mean() for rung, values in {**right, "worst": worst}.items()}
            clean = (predicted(model, images) == labels).mean()
            rows.append({"seed": config.seed, "countermeasure": defence, "network": name, "clean": clean, **rates})
            print(pd.Series(rows[-1]).to_frame().T.round(3).to_string(index=False, header=len(rows) == 1), flush=True)
            if isinstance(model, detection.Guarded):
                attackers = {rung: its[0][:few] for rung, its in examples_of.items() if rung in LADDER} | own_examples
                frame = detection.measure({defence: model.detector}, plain, some, its_labels, attackers)
                told.append(frame.assign(seed=config.seed, network=name))
    return pd.DataFrame(rows), pd.concat(told)


def draw(means: pd.DataFrame, path: Path) -> None:
    """A row for each countermeasure: a line from the worst attacker without the weights to clean images, and dots."""
    figure = Figure(figsize=(10, 0.42 * len(means) + 1.6), layout="constrained")
    axes = figure.subplots()
    table, rows = 100 * means, np.arange(len(means))
    axes.hlines(rows, table.worst, table.clean, color="0.8", lw=6, zorder=0)
    for column, marker, colour, label in (
        ("clean", "s", "black", "clean"),
        ("unseen", "o", "C0", "unseen models"),
        ("queries", "D", "C1", "queries, knows"),
        ("worst", "X", "C3", "all without the weights"),
        ("white_box", "^", "C2", "white box, ignores"),
        ("white_box_knowing", "v", "C4", "white box, knows"),
    ):
        axes.plot(table[column], rows, marker, color=colour, ms=8, alpha=0.85, label=label)
    axes.set_yticks(rows, [name.replace("_", " ") for name in table.index])
    axes.set(xlabel="withstood, %: classified correctly or rejected", xlim=(-2, 100))
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="A YAML file, as satm-tf train --config takes it.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=200, help="Of the test images, for queries and white boxes.")
    parser.add_argument("--out", type=Path, required=True, help="The folder of the tables.")
    given, options = parser.parse_known_args()
    tables: dict[str, list[pd.DataFrame]] = {"countermeasures": [], "detectors": []}
    for seed in given.seeds:
        config = configuration.from_arguments(["--config", given.config, *options, "--seed", str(seed)])
        config = dataclasses.replace(config, run_dir=str(Path("runs") / config.name / str(seed)))
        images = experiment.train(config)
        epsilon = make_attack(config.attack).epsilon
        splits = {split: arrays(getattr(images, split), config) for split in ("train", "validation")}
        defences: dict[str, dict[str, Any]] = {
            scheme: trained(config, scheme) for scheme in config.schemes if scheme not in ("teacher", "null_class")
        }
        defences |= guarded(config, epsilon, splits)
        defences = chosen(defences, *splits["validation"])
        for table, frame in zip(tables, measure(config, defences, epsilon, given.images, images.test), strict=True):
            tables[table].append(frame)
    for table, frames in tables.items():
        write_text(given.out / f"{table}.csv", pd.concat(frames).to_csv(index=False, float_format="%.4f"))
    means = pd.concat(tables["countermeasures"]).groupby("countermeasure", sort=False).mean(numeric_only=True)
    draw(means, given.out / "countermeasures.png")
    print(means.drop(columns="seed").mul(100).round(1).to_string())


if __name__ == "__main__":
    main()
