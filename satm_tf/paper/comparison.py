"""Our results, next to what the paper printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from satm_tf.evaluation import Predictions, compare_paired, mean_interval, wilson_interval
from satm_tf.evaluation.leaking import against_clean
from satm_tf.evaluation.names import NetworkName
from satm_tf.experiment.config import Config
from satm_tf.paper.measuring import cells_of
from satm_tf.paper.tables import READINGS, SETTLED, Entry, Table


@dataclass(frozen=True)
class Repeat:
    """One fold and seed of an experiment, measured.

    Attributes:
        fold: The fold tested on; None if the data set has none.
        seed: The seed.
        predictions: Every network's prediction for every image.
        ordered: Whether the classes are ordered; if not, there is no one-off accuracy.
    """

    fold: int | None
    seed: int
    predictions: Predictions
    ordered: bool


def compare(table: Table, config: Config, repeats: Sequence[Repeat], reading: str) -> pd.DataFrame:
    """A row for each entry of a table: ours, the paper's, and how far apart they are.

    Args:
        table: The table.
        config: The configuration that was measured.
        repeats: One or more folds and seeds.
        reading: One of `READINGS`.

    Returns:
        A frame with the columns `reading`, `target`, `examples_of`, `epsilon`, `scheme`; `rate`, `rate_sd`, `rate_low`,
        `rate_high` (the mean over repeats, the standard deviation and the ends of the 95 % interval: Student's over
        repeats, Wilson's for one), `paper_rate` and `rate_difference` (ours minus the paper's), the same for `one_off`;
        for each scheme to compare with, and for clean images if the table has them, `over_<scheme>` or
        `over_clean_images`, with `_low` and `_high` (the paired difference with its 95 % interval, over repeats, or
        over the images of one) and `paper_over_...`; `leaks`, by the rule of `satm_tf.evaluation.label_leaking`, if the
        table shows it; `repeats` and `images`, their total numbers. All rates are in percent and differences in points;
        error rates if the table shows errors.
    """
    entries = {(entry.place, entry.scheme): entry for entry in table.entries}
    hits = {
        key: [_Hits.of(repeat, table, cells_of(config, table, entry, reading)) for repeat in repeats]
        for key, entry in entries.items()
    }
    leaks = _leaks(entries, hits) if "leaking" in table.settled else {}
    rows = []
    for (place, scheme), entry in entries.items():
        own = hits[place, scheme]
        row: dict[str, Any] = {
            "reading": reading,
            "target": _target(entry),
            "examples_of": _examples(entry),
            "epsilon": cells_of(config, table, entry, reading)[0].epsilon,
            "scheme": scheme,
        }
        for value, printed in (("rate", _printed(table, entry)), ("one_off", entry.one_off)):
            row |= _summary(value, [getattr(each, value) for each in own], printed)
        bases = {other: (place, other) for other in table.against if other != scheme}
        if entry.sources:
            bases["clean_images"] = ((entry.target, (), 0.0), scheme)
        for name, base in bases.items():
            if base in entries:
                against = [_difference(*pair) for pair in zip(hits[base], own, strict=True)]
                ends = (f"over_{name}", f"over_{name}_low", f"over_{name}_high")
                row |= dict(zip(ends, _mean(against), strict=True))
                one, two = _printed(table, entry), _printed(table, entries[base])
                row[f"paper_over_{name}"] = math.nan if one is None or two is None else one - two
        row["leaks"] = leaks.get((place, scheme), False)
        rows.append({**row, "repeats": len(repeats), "images": sum(len(each.rate[0]) for each in own)})
    return pd.DataFrame(rows)


class _Hits(NamedTuple):
    """Whether each image counts, for each of the cells of an entry."""

    rate: list[np.ndarray]
    one_off: list[np.ndarray]

    @classmethod
    def of(cls, repeat: Repeat, table: Table, cells: Sequence[Any]) -> _Hits:
        found = repeat.predictions
        rows = [found.row(*cell).astype(int) for cell in cells]
        right = [(row == found.labels) != table.error for row in rows]
        return cls(right, [np.abs(row - found.labels) <= 1 for row in rows] if repeat.ordered else [])


_Key = tuple[tuple[str, tuple[str, ...], float], str]


def _leaks(entries: Mapping[_Key, Entry], hits: Mapping[_Key, Sequence[_Hits]]) -> dict[_Key, bool]:
    """Which entries leak labels; each has one cell, and the images of all repeats are tested together."""

    def pooled(key: _Key) -> np.ndarray:
        return np.concatenate([each.rate[0] for each in hits[key]])

    found: dict[_Key, bool] = {}
    for target, scheme in dict.fromkeys((entry.target, scheme) for (_, scheme), entry in entries.items()):
        clean = (target, (), 0.0), scheme
        adversarial = {
            key: pooled(key)
            for key, entry in entries.items()
            if entry.target == target and key[1] == scheme and entry.sources
        }
        if clean in entries and adversarial:
            found |= {key: leak.leaks for key, leak in against_clean(pooled(clean), adversarial).items()}
    return found


def _summary(value: str, repeats: Sequence[list[np.ndarray]], printed: float | None) -> dict[str, float]:
    means = [100 * float(np.mean(cells)) if cells else math.nan for cells in repeats]
    if len(means) > 1:
        spread, (low, high) = float(np.std(means, ddof=1)), mean_interval(means)
    else:
        # The mean of their intervals, which is not too narrow, because the cells share their images.
        ends = [wilson_interval(cell.sum(), cell.size) for cell in repeats[0]]
        spread, (low, high) = math.nan, 100 * np.mean(ends, axis=0) if ends else (math.nan, math.nan)
    mean = float(np.mean(means))
    return {
        value: mean,
        f"{value}_sd": spread,
        f"{value}_low": float(low),
        f"{value}_high": float(high),
        f"paper_{value}": math.nan if printed is None else printed,
        f"{value}_difference": math.nan if printed is None else mean - printed,
    }


def _difference(first: _Hits, second: _Hits) -> tuple[float, float, float]:
    """The second's rate minus the first's in one repeat, in points, with the ends of its interval."""
    # Clean images are one cell, which is compared with each of several.
    firsts = first.rate * len(second.rate) if len(first.rate) == 1 else first.rate
    pairs = [compare_paired(*pair) for pair in zip(firsts, second.rate, strict=True)]
    difference, low, high = 100 * np.mean([(x.difference, x.low, x.high) for x in pairs], axis=0)
    return float(difference), float(low), float(high)


def _mean(differences: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    if len(differences) == 1:
        return differences[0]
    values = [difference for difference, *_ in differences]
    return (float(np.mean(values)), *mean_interval(values))


def _printed(table: Table, entry: Entry) -> float | None:
    return 100 - entry.rate if table.error and entry.rate is not None else entry.rate


def _examples(entry: Entry) -> str:
    if not entry.sources:
        return "clean images"
    if entry.sources == (entry.target,):
        return "its own"
    return ", ".join(NetworkName.parse(source).network for source in entry.sources)


def _target(entry: Entry) -> str:
    name = NetworkName.parse(entry.target.format(scheme=entry.scheme))
    return name.network if name.scheme == entry.scheme else str(name)


def markdown(number: int, table: Table, rows: pd.DataFrame, account: str) -> str:
    """A table as Markdown, with the points that it depends on.

    Args:
        number: Its number in the paper.
        table: The table.
        rows: The frames of `compare` for the readings, concatenated.
        account: What was measured, and on what.
    """
    parts = [f"# Table {number}: {table.title}", account]
    for reading, of_reading in rows.groupby("reading", sort=False):
        parts.append(f"## Reading of R+Step-LL: {reading} (`{READINGS[str(reading)]}`)")
        parts.append(_grid(table, of_reading))
        leaking = _leaking(of_reading) if "leaking" in table.settled else []
        if "leaking" in table.settled:
            parts.append(f"Adversarial images classified better than clean ones: {'; '.join(leaking) or 'none'}.")
    if table.quoted:
        parts.append(table.quoted)
    parts.append("Open points of the paper, and how they are settled here:")
    parts.append("\n".join(f"- {SETTLED[name]}" for name in table.settled))
    return "\n\n".join(parts) + "\n"


def _grid(table: Table, rows: pd.DataFrame) -> str:
    rate = "error %" if table.error else "rate %"
    values = {"rate": rate} | ({} if rows.one_off.isna().all() else {"one_off": "one-off %"})
    against = [name for name in table.against if f"over_{name}" in rows]
    head = ["network", "examples of", "epsilon", "training"]
    for title in values.values():
        head += [title, "paper", "difference"]
    for name in against:
        head += [f"points over {name}", "paper"]
    lines = [head, ["---"] * len(head)]
    for row in rows.to_dict("records"):
        line = [row["target"], row["examples_of"], _epsilon(row["epsilon"]), row["scheme"]]
        for value in values:
            line += [_own(row, value), _number(row[f"paper_{value}"]), _number(row[f"{value}_difference"], "+.1f")]
        for name in against:
            line += [_over(row, name), _number(row[f"paper_over_{name}"], "+.2f")]
        lines.append(line)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _number(value: float, form: str = ".2f") -> str:
    return "" if pd.isna(value) else format(value, form)


def _own(row: Mapping[Any, Any], value: str) -> str:
    if row["repeats"] > 1:
        return f"{row[value]:.1f} ± {row[f'{value}_sd']:.1f}"
    return f"{row[value]:.1f} ({row[f'{value}_low']:.1f} to {row[f'{value}_high']:.1f})"


def _over(row: Mapping[Any, Any], name: str) -> str:
    if pd.isna(row[f"over_{name}"]):
        return ""
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(row[f"over_{name}{end}"] for end in ("", "_low", "_high")))


def _epsilon(epsilon: float) -> str:
    if not epsilon:
        return ""
    return f"{256 * epsilon:g}/256" if (256 * epsilon).is_integer() else f"{epsilon:g}"


def _leaking(rows: pd.DataFrame) -> list[str]:
    return [
        f"{row['scheme']}, {row['target']}, by {_over(row, 'clean_images')} points"
        for row in rows.to_dict("records")
        if row["leaks"]
    ]
