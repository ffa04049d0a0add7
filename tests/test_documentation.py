"""README.md and the pages of docs/: what stands in them works.

A page is one session: its `python` and `sh` blocks run in order, in one namespace, folder and process. A comment on its
own line above a block says otherwise: `<!-- not run: REASON -->`, or `<!-- dry run -->` for commands that would train.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

from satm_tf.experiment.config import Config, from_arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNS = re.compile(r"^```(python|sh|yaml)", re.MULTILINE)
REST_OF_A_CONFIGURATION = """
networks: {compact_vgg: {backbone: compact_vgg}, compact_resnet: {backbone: compact_resnet}}
attack: {name: randomised_step, epsilon: 0.1}
schemes: {undefended: {preset: undefended}}
"""
SHOWN = {"text", "json", "toml", "bibtex"}  # languages that nothing runs


class Block(NamedTuple):
    """A fenced block of a page: where its first line is, and what the comment above it says."""

    language: str
    code: str
    line: int
    comment: str


def blocks_of(page: str) -> list[Block]:
    """All blocks of a page; an error where one would be passed over unseen."""
    tokens = MarkdownIt().parse(page)
    found = []
    for before, token in pairwise([tokens[0], *tokens] if tokens else []):
        if token.type == "fence":
            comment = before.content.strip() if before.type == "html_block" else ""
            comment = comment.removeprefix("<!--").removesuffix("-->").strip() if comment.startswith("<!--") else ""
            found.append(Block(token.info.strip(), token.content, token.map[0] + 2, comment))
    assert len(re.findall(r"^ *(```|~~~)", page, re.MULTILINE)) == 2 * len(found), "a fence that is none to Markdown"
    for block in found:
        where = f"the block at line {block.line}"
        assert block.language in {"python", "sh", "yaml", *SHOWN}, f"{where} is {block.language!r}, not python, sh, ..."
        assert re.fullmatch(r"(not run: .+|dry run|)", block.comment, re.DOTALL), f"{where}: what is {block.comment!r}?"
    return found


def run(block: Block, page: Path, namespace: dict[str, object]) -> None:
    """Runs a block in the current folder."""
    if block.comment.startswith("not run"):
        return
    if block.language == "python":
        padding = "\n" * (block.line - 1)  # tracebacks name the page's own lines
        exec(compile(padding + block.code, page, "exec"), namespace)
    elif block.language == "sh":
        for command in commands_of(block.code):
            run_command(command, block)
    elif block.language == "yaml" and not yaml.safe_load(block.code).keys().isdisjoint(f.name for f in fields(Config)):
        # What shows some fields alone has the rest from here.
        described = {**yaml.safe_load(REST_OF_A_CONFIGURATION), **yaml.safe_load(block.code)}
        Path("configuration.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
        from_arguments(["--config", "configuration.yaml"])


def commands_of(code: str) -> list[list[str]]:
    """The words of each command of a shell block."""
    lexer = shlex.shlex(code.replace("\\\n", " "), posix=True, punctuation_chars="\n;")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    commands = [list(words) for ends, words in groupby(lexer, lambda word: set(word) <= set("\n;")) if not ends]
    assert not any(word[0] in "|&<>$`" for command in commands for word in command), f"too much shell in {code}"
    return commands


def ours(words: list[str]) -> tuple[str, list[str]] | None:
    """The name and the arguments of a command of ours; None for any other command."""
    if words[:2] == ["python", "-m"] and words[2].startswith("satm_tf."):
        return words[2].removeprefix("satm_tf."), words[3:]
    start = next((start for start in (["python", "-m", "satm_tf"], ["satm-tf"]) if words[: len(start)] == start), None)
    return (words[len(start)], words[len(start) + 1 :]) if start else None


def run_command(words: list[str], block: Block) -> None:
    """Runs one command; ours in this process, where TensorFlow has started already."""
    where, found = f"the block at line {block.line}", ours(words)
    if block.comment == "dry run":
        assert found is not None, f"nothing to run dry in {where}"
        assert found[0] in ("train", "reproduce"), f"nothing to run dry in {where}"
        found[1].append("--dry-run")
    if found is not None:
        code = importlib.import_module(f"satm_tf.{found[0]}").main(found[1])
        assert code == 0, f"{where} ends with {code}"
        return
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, f"{where} ends with {done.returncode}:\n{done.stdout}{done.stderr}"


def run_page(text: str, page: Path) -> None:
    """Runs the blocks of a page, one after the other, in one namespace."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(text):
        run(block, page, namespace)


def parameters() -> list[object]:
    """The pages that run anything."""
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=pytest.mark.slow)
        for page in PAGES
        if RUNS.search(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("page", parameters())
def test_what_a_page_shows_works(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page.read_text(encoding="utf-8"), page)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\nassert 1 > 2, 'not so'\n```\n", "not so"),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2, 'one namespace'\n```\n", "one namespace"),
        ("```sh\necho seen; false\n```\n", "ends with 1"),
        ("<!-- not run -->\n```sh\nfalse\n```\n", "what is 'not run'"),
        ("<!-- dry run -->\n```sh\ntrue\n```\n", "nothing to run dry"),
        ("```sh\nls | cat\n```\n", "too much shell"),
        ("```ruby\n1\n```\n", "not python, sh"),
        ("<div>\n```python\nassert False\n```\n</div>\n", "a fence that is none"),
    ],
)
def test_what_does_not_work_is_found(page, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=re.escape(message)):
        run_page(page, tmp_path / "page.md")


@pytest.fixture(scope="module")
def made():
    """The hook that makes pages while the site is built."""
    spec = importlib.util.spec_from_file_location("made_pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_page_of_a_notebook_has_its_code_and_pictures_and_none_of_another_host(path, made):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    text, pictures = made.notebook_page(notebook, path.stem)
    assert set(re.findall(r"!\[[^]]*\]\((.+?)\)", text)) == set(pictures)
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    fences = [token for token in MarkdownIt().parse(text) if token.type == "fence" and token.level == 0]
    code = ["".join(each["source"]) + "\n" for each in notebook["cells"] if each["cell_type"] == "code"]
    assert [fence.content for fence in fences if fence.info == "python"] == code


def leaderboard_tables():
    page = (ROOT / "docs" / "results" / "leaderboard.md").read_text(encoding="utf-8")
    return re.findall(r"<!-- table: (.+) -->", page)


def test_every_file_of_points_is_on_the_leaderboard_at_each_epsilon():
    expected = set()
    for path in (ROOT / "docs" / "results").glob("*/*_points.csv"):
        name = path.relative_to(ROOT / "docs" / "results").as_posix()
        points = pd.read_csv(path)
        expected |= {f"{name} {epsilon}" for epsilon in points.epsilon} if "epsilon" in points else {name}
    assert sorted(leaderboard_tables()) == sorted(expected)


@pytest.mark.parametrize("asked", leaderboard_tables())
def test_the_leaderboard_shows_means_of_the_csv_files(asked, made):
    """To the tenth of a point that the page shows, over all seeds and, where there are several, networks."""
    name, _, epsilon = asked.partition(" ")
    points = pd.read_csv(ROOT / "docs" / "results" / name, dtype={"epsilon": str})
    points = points[points.epsilon == epsilon] if epsilon else points
    text = re.sub("<code>.*?</code>|</?(details|summary)>", "", made.leaderboard(asked))
    head, *lines = [re.findall("<t[hd]>(.*?)</t[hd]>", line) for line in text.splitlines() if "<tr>" in line]
    table = pd.DataFrame(lines, columns=head).set_index("scheme").astype(float)
    assert set(table.index) == set(points.scheme)
    assert table.worst.is_monotonic_decreasing
    measured = points.dropna(axis="columns", how="all")
    shown = set(measured.columns) - {"epsilon", "seed", "network", "scheme", "transfer"}
    assert set(table.columns) == {column.replace("_", " ") for column in shown} | {"seeds"}
    for scheme, own in measured.groupby("scheme"):
        assert table.seeds[scheme] == own.seed.nunique()
        for column in shown:
            assert table[column.replace("_", " ")][scheme] == pytest.approx(100 * own[column].mean(), abs=0.0501)


@pytest.mark.parametrize("name", sorted({asked.partition(" ")[0] for asked in leaderboard_tables()}))
def test_the_command_of_each_row_trains_its_scheme_as_the_study_did(name, made):
    study = made.STUDIES[name]
    asked = next(asked for asked in leaderboard_tables() if asked.startswith(name))
    whole = yaml.safe_load((ROOT / study.config).read_text(encoding="utf-8"))["schemes"]
    given = {}
    for row in made.rows(asked):
        words = shlex.split(row.command)
        given[row.scheme] = words[words.index("--schemes") + 1].removesuffix(";")
        again = yaml.safe_load(given[row.scheme])
        assert again == {scheme: each for scheme, each in whole.items() if scheme in again}
        assert {row.scheme, study.undefended, study.chosen} <= set(again)
    # The one that needs most: a configuration names each scheme that it needs and does not have.
    longest = max(given.values(), key=len)
    config = from_arguments(["--config", str(ROOT / study.config), "--schemes", longest])
    assert set(config.schemes) == set(yaml.safe_load(longest)), "those of the file are replaced"


def test_files_that_readme_links_to_exist():
    """Those of docs/ are checked when the site is built."""
    tokens = MarkdownIt("commonmark").enable("table").parse((ROOT / "README.md").read_text(encoding="utf-8"))
    inline = [child for token in tokens for child in token.children or ()]
    links = [
        child.attrs.get("href") or child.attrs.get("src") for child in inline if child.type in ("link_open", "image")
    ]
    inside = [link.partition("#")[0] for link in links if "://" not in link]
    assert inside
    assert [link for link in inside if not (ROOT / link).exists()] == []


def test_the_tests_that_security_names_exist():
    root = Path(__file__).parents[1]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (root / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    for path, test in named:
        assert f"\ndef {test}(" in (root / path).read_text(encoding="utf-8"), f"{path}::{test}"


# What readers had to puzzle over, or what DESIGN.md has another term for.
_WORDS = (
    *("stranger", "rightly", "in the place of", "are no numbers", "goes on when", "goes on where", "taken wrongly"),
    *("accuracys", "in silence", "what all random numbers", "draws follow from", "by questions alone"),
    *("wins over", "a fresh start", "has its own alone", "no trace", "do not go together", "flatters", "is no bargain"),
    *(
        "ours beside",
        "stands beside",
        "stand beside",
        "trains beside",
        "write the label into",
        "writes that label into",
    ),
    *(
        "no scheme has met",
        "nobody has met",
        "speaks for it",
        "what came out",
        "images a second",
        "a pixel that the model",
    ),
    *("one's own folder", "of one's own", "sub-folder a class", "row a source", "is no text", "in the white box"),
    *("fool whom", "fools whom", "what became of", "the white box", "what it is worth", "which is chance"),
    *("worth nothing", "withstands most", "leaves most", "stay right", "left right", "follow from", "follows from"),
    *("goes on", "made anew", "draw after draw", "run after run", "one row a", "is no number", "no promise"),
    *('"""within,', "whatever became", "what was asked", "is asked for", "with a word", "takes the place"),
    *("what goes wrong",),
)


def test_words_that_read_as_if_translated_do_not_come_back():
    texts = [
        *PAGES,
        *(ROOT / name for name in ("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "notebooks/README.md")),
    ]
    texts += (ROOT / "notebooks").glob("*.ipynb")
    texts += [*(ROOT / "satm_tf").rglob("*.py"), *(ROOT / "satm_tf").rglob("*.j2"), *(ROOT / "satm_tf").rglob("*.yaml")]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in texts
        for word in _WORDS
        if word in " ".join(path.read_text(encoding="utf-8").lower().split())
    ]
    assert found == []
