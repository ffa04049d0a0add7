"""Runs the experiments for the requested tables and figures, and writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from satm_tf import data
from satm_tf.configurable import plural
from satm_tf.experiment import cost, work
from satm_tf.experiment.config import Config
from satm_tf.experiment.images import look_at_data
from satm_tf.experiment.run_folder import RunFolder, Stage
from satm_tf.experiment.running import train
from satm_tf.paper.comparison import Repeat, compare, markdown
from satm_tf.paper.drawing import draw_curves, draw_gallery
from satm_tf.paper.measuring import Cell, cells_of, measure_cells, measured_cells, resolve, stage_of, stages_of
from satm_tf.paper.tables import FIGURES, READINGS, TABLES, Figure, Table
from satm_tf.storage import claim, lock, write_text

EXPERIMENTS = ("faces", "digits")


@dataclasses.dataclass(frozen=True)
class Request:
    """The requested tables and figures.

    Attributes:
        tables: Numbers of the paper's tables, 1 to 7.
        figures: Numbers of its figures: 1, 3, 4.
        configs: The configurations of the experiments that they need, "faces" and "digits".
        out: The output folder.
        folds: The folds of the faces; the digits have one split.
        seeds: The seeds of both.
        readings: Readings of R+Step-LL, from `READINGS`.
        printed_only: Whether to leave out our controls, the entries for which the paper has no figure.
    """

    tables: Sequence[int]
    figures: Sequence[int]
    configs: Mapping[str, Config]
    out: Path
    folds: Sequence[int] = (0, 1, 2, 3, 4)
    seeds: Sequence[int] = (0,)
    readings: Sequence[str] = tuple(READINGS)
    printed_only: bool = False

    def chosen(self, experiment: str) -> dict[int, Table]:
        """The tables of an experiment, with the requested entries."""
        found = {number: TABLES[number] for number in self.tables if TABLES[number].experiment == experiment}
        if not self.printed_only:
            return found
        return {
            number: dataclasses.replace(table, entries=tuple(e for e in table.entries if e.rate is not None))
            for number, table in found.items()
        }

    def drawn(self, experiment: str) -> dict[int, Figure]:
        """The figures of an experiment: all show the faces."""
        return {number: FIGURES[number] for number in self.figures} if experiment == EXPERIMENTS[0] else {}

    def cells(self, experiment: str) -> list[Cell]:
        """The cells of an experiment's tables, each once."""
        config = self.configs[experiment]
        return list(
            dict.fromkeys(
                cell
                for table in self.chosen(experiment).values()
                for entry in table.entries
                for reading in self.readings
                for cell in cells_of(config, table, entry, reading)
            )
        )

    def stages(self, experiment: str) -> list[Stage]:
        """The stages that an experiment's tables and figures need, in order, each once."""
        config = self.configs[experiment]
        drawn = [
            stage_of(resolve(config, name, reading))
            for figure in self.drawn(experiment).values()
            for name in figure.networks
            for reading in self.readings
        ]
        return config.needed_stages([*stages_of(self.cells(experiment)), *drawn])

    def experiments(self) -> list[str]:
        """The requested experiments."""
        return [name for name in EXPERIMENTS if self.chosen(name) or self.drawn(name)]

    def repeats(self, experiment: str) -> list[Config]:
        """The runs of an experiment: its configuration for each seed and fold, each with its own folder."""
        config = self.configs[experiment]
        configs = []
        for seed in self.seeds:
            place = self.out / experiment / f"seed_{seed}"
            # Synthetic faces are drawn once for all folds.
            drawn = config.data.format == "synthetic_faces" and config.data.root is None
            root = str(RunFolder(place).synthetic_faces) if drawn else config.data.root
            for fold in self.folds if experiment == EXPERIMENTS[0] else [None]:
                images = dataclasses.replace(config.data, root=root, fold=fold)
                folder = place / ("run" if fold is None else f"fold_{fold}")
                configs.append(dataclasses.replace(config, seed=seed, data=images, run_dir=str(folder)))
        return configs


def describe_cost(request: Request) -> str:
    """Describes the remaining work and its approximate cost; builds and times each network once."""
    lines, wholes = [], []
    for experiment in request.experiments():
        config, cells = request.configs[experiment], request.cells(experiment)
        repeats = request.repeats(experiment)
        _, found = look_at_data(repeats[0].data, repeats[0].folder, repeats[0].seed)
        stages = request.stages(experiment)
        to_do = {str(stage): sum(not each.folder.networks(stage).exists() for each in repeats) for stage in stages}
        to_do["measure"] = sum(bool(set(cells) - set(measured_cells(each.folder))) for each in repeats)
        rows, whole = cost.table(work.count(config, stages, cells, found, cost.timed(config)), to_do)
        wholes.append(whole._replace(bytes=whole.bytes + len(request.seeds) * cost.data_bytes(config)))
        lines.append(
            f"{experiment}: {plural(len(repeats), 'run')} of {found.train:,} training, {found.validation:,} validation "
            f"and {plural(found.test, 'test image')}; {plural(len(stages), 'stage')} and "
            f"{plural(len(cells), 'cell')} each"
        )
        lines += [*cost.describe_networks(config), *rows]
    lines.append(cost.summary(cost.in_all(wholes)))
    return "\n".join(lines)


def reproduce(request: Request, account: str) -> None:
    """Trains, measures and writes; the same call resumes after an interruption.

    Writes `tables/table_<n>.md` and `.csv`, `figures/figure_<n>_<reading>.png` and `.csv`, and for each experiment
    `results_<experiment>.csv` (a row for each cell, fold and seed), again after each run, and prints the tables at the
    end.

    Args:
        request: The requested tables and figures.
        account: The text above every table: the command and the scale.

    Raises:
        ValueError: As `experiment.train` does.
        FileNotFoundError: As `experiment.train` does.
        FloatingPointError: As `experiment.train` does.
        Interrupted: As `experiment.train` does.
    """
    for experiment in request.experiments():
        with lock(request.out / experiment):
            _reproduce(request, experiment, account)
    for number in request.tables:
        print(f"\n{(request.out / 'tables' / f'table_{number}.md').read_text(encoding='utf-8')}")
    print(f"written: {request.out}")


def _reproduce(request: Request, experiment: str, account: str) -> None:
    described = dataclasses.asdict(request.configs[experiment])
    for name in ("run_dir", "seed"):
        del described[name]
    claim(request.out / experiment, described)
    done: list[Repeat] = []
    folders: list[RunFolder] = []
    for config in request.repeats(experiment):
        images = train(config, request.stages(experiment))
        if images is None:
            return
        folders.append(config.folder)
        cells = request.cells(experiment)
        if cells:
            predictions = measure_cells(config, images, cells)
            done.append(Repeat(config.data.fold, config.seed, predictions, images.ordered))
            _write_results(request.out / f"results_{experiment}.csv", done)
            _write_tables(request, experiment, done, account)
        _draw(request, experiment, config, images, folders)


def _write_results(path: Path, done: Sequence[Repeat]) -> None:
    frames = []
    for repeat in done:
        frame = repeat.predictions.frame(repeat.ordered).sort_values(["attack", "epsilon", "source", "target"])
        frame.insert(0, "fold", repeat.fold)
        frame.insert(1, "seed", repeat.seed)
        frames.append(frame)
    write_text(path, pd.concat(frames).to_csv(index=False))


def _write_tables(request: Request, experiment: str, done: Sequence[Repeat], account: str) -> None:
    config = request.configs[experiment]
    folder = request.out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    images = sum(len(repeat.predictions.labels) for repeat in done)
    runs = f"{len(done)} of {plural(len(request.repeats(experiment)), 'run')}, {plural(images, 'test image')} in all: "
    runs += ", ".join(
        f"seed {repeat.seed}" + ("" if repeat.fold is None else f" fold {repeat.fold}") for repeat in done
    )
    roles = ", ".join(f"{name} is {described.described}" for name, described in config.all_networks.items())
    how = "mean ± standard deviation over runs" if len(done) > 1 else "with Wilson's 95 % interval"
    text = (
        f"{account}\n\n{runs}. Rates are {how}; differences between trainings are paired, with 95 % intervals. "
        f"Networks: {roles}. Data: {_data(config)}, {config.data.image_size} x {config.data.image_size}."
    )
    for number, table in request.chosen(experiment).items():
        rows = pd.concat([compare(table, config, done, reading) for reading in request.readings])
        write_text(folder / f"table_{number}.csv", rows.to_csv(index=False))
        write_text(folder / f"table_{number}.md", markdown(number, table, rows, text))


def _data(config: Config) -> str:
    """The format and the folder's name: MNIST and Fashion-MNIST have the same format."""
    root = config.data.root
    return config.data.format if root is None else f"{config.data.format} ({Path(root).resolve().name})"


def _draw(
    request: Request, experiment: str, config: Config, images: data.ImageData, folders: Sequence[RunFolder]
) -> None:
    for number, figure in request.drawn(experiment).items():
        for reading in request.readings:
            path = request.out / "figures" / f"figure_{number}_{reading}.png"
            if figure.split is not None:
                draw_curves(figure, config, folders, reading, path)
            elif not path.exists():
                draw_gallery(figure, config, images, folders[0], reading, path)
