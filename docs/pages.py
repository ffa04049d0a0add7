"""Makes pages while MkDocs builds the site: one of each notebook, and the tables of results/leaderboard.md.

Both are made from committed files, so they cannot go stale.
"""

from __future__ import annotations

import base64
import csv
import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by MkDocs with the files of docs/: adds a page of each notebook, with its pictures."""
    from mkdocs.structure.files import File  # the tests of this file need no MkDocs

    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = notebook_page(json.loads(path.read_text(encoding="utf-8")), path.stem)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called by MkDocs with the text of each page: fills in the tables of the leaderboard."""
    if page.file.src_uri != "results/leaderboard.md":
        return markdown
    return re.sub(r"<!-- table: (.+) -->", lambda found: leaderboard(found[1]), markdown)


# Notebooks


def notebook_page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A stored notebook as Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            # The badge is a picture on another host, which a page of the site does not ask.
            parts.append(re.sub(r"\[!\[(.+?)\]\(.+?\)\]\((.+?)\)", r"[\1](\2){ .md-button }", source))
            continue
        parts.append(_fenced(source, "python"))
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "text" in output:
                parts.append(_fenced("".join(output["text"]), "text"))
            elif "image/png" in data:
                file = f"{name}_{len(pictures)}.png"
                pictures[file] = base64.b64decode("".join(data["image/png"]))
                shown = output["metadata"].get("image/png", {})
                width = f"{{ width={shown['width']} }}" if "width" in shown else ""
                parts.append(f"![{shown.get('alt', 'What the code above shows')}]({file}){width}")
            elif "text/html" in data:
                parts.append(f'<div class="output">\n{_table("".join(data["text/html"]))}\n</div>')
            elif "text/markdown" in data:
                parts.append("".join(data["text/markdown"]))
            else:
                parts.append(_fenced("".join(data["text/plain"]), "text"))
    return "\n\n".join(parts) + "\n", pictures


def _fenced(text: str, language: str) -> str:
    text = text.rstrip("\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _table(text: str) -> str:
    """A table of pandas without the blank lines that would end the HTML in Markdown; the site's style fits it in."""
    text = re.sub(r' (border="1"|class="dataframe")', "", text)
    return re.sub(r"\n\s*\n", "\n", text)


# Leaderboard


class Study(NamedTuple):
    """How a file of results was made.

    Attributes:
        config: The configuration with the schemes.
        undefended: The name of the scheme that all are compared with.
        chosen: The one that the study compares with the others.
        commands: Repeats rows: {schemes}, {seeds}, {name} are filled in.
    """

    config: str
    undefended: str
    chosen: str
    commands: str


_SCHEMES_PY = "python benchmarks/schemes.py {config} --data.root FASHION_MNIST --name {name} --schemes '{schemes}'"
STUDIES = {
    "fashion_mnist/test_points.csv": Study(
        "benchmarks/schemes_confirmation.yaml",
        "undefended-w0",
        "live-w1",
        # A twin is the network of the next seed.
        f"{_SCHEMES_PY} --split test --twins --seeds 2 3 4",
    ),
    "fashion_mnist/validation_points.csv": Study(
        "benchmarks/schemes_search.yaml",
        "undefended-w0",
        "live-w1",
        f"{_SCHEMES_PY} --split validation --seeds {{seeds}}",
    ),
    **{
        f"{preset}/test_points.csv": Study(
            f"satm_tf/experiment/presets/{preset}.yaml",
            "undefended",
            "recommended",
            f"for seed in {{seeds}}; do satm-tf train --config {preset} --data.root UTKFACE --seed $seed "
            "--run_dir runs/{name}/$seed --schemes '{schemes}'; done; "
            "python benchmarks/faces.py runs/{name}/* --out results/{name}",
        )
        for preset in ("utkface_age", "utkface_gender")
    },
}
COLUMNS = {
    "clean": "clean",
    "unseen": "unseen",
    "public_weights": "public weights",
    "defended": "defended",
    "twin": "twin",
    "queries": "queries",
    "worst": "worst",
    "start": "start",
    "white_box": "white box",
}


class Row(NamedTuple):
    """A scheme: what it keeps, and how to see that again."""

    scheme: str
    accuracies: dict[str, float | None]
    seeds: list[str]
    command: str


def rows(asked: str) -> list[Row]:
    """The rows of a table, the highest worst rung first: means over all lines of the file with the same scheme.

    Args:
        asked: A file of `STUDIES`, and, for one with several epsilons, which: `FILE 8/256`.
    """
    name, _, epsilon = asked.partition(" ")
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line.get("epsilon", "") == epsilon]
    study = STUDIES[name]
    found = []
    for scheme in dict.fromkeys(line["scheme"] for line in lines):
        own = [line for line in lines if line["scheme"] == scheme]
        seeds = sorted({line["seed"] for line in own}, key=int)
        means = {column: _mean(line[column] for line in own) for column in COLUMNS if column in own[0]}
        found.append(Row(scheme, means, seeds, _command(study, scheme, seeds)))
    return sorted(found, key=lambda row: -(row.accuracies["worst"] or 0.0))


def _mean(cells: Iterable[str]) -> float | None:
    numbers = [float(cell) for cell in cells if cell]
    return sum(numbers) / len(numbers) if numbers else None


def _command(study: Study, scheme: str, seeds: list[str]) -> str:
    schemes = yaml.safe_load((ROOT / study.config).read_text(encoding="utf-8"))["schemes"]
    sources = schemes[scheme].get("frozen_from", [])
    needed = {study.undefended, study.chosen, scheme, *([sources] if isinstance(sources, str) else sources)}
    # By way of JSON, so that YAML writes what several schemes share for each of them.
    given = json.loads(json.dumps({name: each for name, each in schemes.items() if name in needed}))
    return study.commands.format(
        config=study.config,
        name=scheme,
        seeds=" ".join(seeds),
        schemes=yaml.safe_dump(given, default_flow_style=True, sort_keys=False, width=100_000).strip(),
    )


def leaderboard(asked: str) -> str:
    """A table in HTML, which leaderboard.js makes sortable."""
    found = rows(asked)
    columns = [column for column in COLUMNS if any(row.accuracies.get(column) is not None for row in found)]
    heads = ["scheme", *(COLUMNS[column] for column in columns), "seeds"]
    lines = [
        "<table data-sortable>",
        f"<thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>",
        "<tbody>",
    ]
    for row in found:
        command = f"<details><summary>{row.scheme}</summary><code>{html.escape(row.command)}</code></details>"
        cells = [command, *(_percent(row.accuracies[column]) for column in columns), str(len(row.seeds))]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.1f}"
