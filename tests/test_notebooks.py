"""Every notebook is stored with its outputs, small and without noise; it runs, twice, and tells the same story."""

from __future__ import annotations

import copy
import re
import socket
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from notebooks import run

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
PUBLIC = "https://colab.research.google.com/github/satm-tf/satm_tf/blob/main/notebooks"
INSTALL = re.compile(
    r"import sys\n\nif \"google\.colab\" in sys\.modules:\n"
    r"    %pip install -q (git\+https://github\.com/satm-tf/satm_tf"
    r"|\"satm_tf\[[a-z,]+\] @ git\+https://github\.com/satm-tf/satm_tf\")"
)
LARGEST, LARGEST_PICTURE = 400_000, 60_000  # bytes: a repository and a phone have to carry them
NOISE = re.compile(r"\r|\x1b|/(tmp|home|root|work|Users|opt)/|Warning|Traceback| at 0x[0-9a-f]")
LONG = re.compile(r"^(?!def ).*\b(fit|harden|main|measure|masking_checks|transfer_matrix)\(", re.MULTILINE)

# A number that is not part of a name, a path or a version, and the unit after it.
NUMBER = re.compile(r"(?<![\w./-])([-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w/-]|\.\d)( ?%| ?points| \w+)?")
TIMES = {"s", "ms", "min", "h", "seconds", "minutes"}
# Bounds. Another number of threads trains another network, on as few images as here. Counts are equal.
PER_CENT, RATE = 15.0, 0.15
FEW, SOME = 30, 3
OTHER = 0.25  # relative, of what is more than 100 % can be: sizes of files


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def text_of(output: nbformat.NotebookNode) -> str:
    """What an output says in words; nothing for a picture."""
    data = output.get("data", {})
    if "image/png" in data:
        return ""
    page = re.sub(r"<style.*?</style>", "", data.get("text/html", ""), flags=re.DOTALL)
    return output.get("text") or re.sub(r"<[^>]*>", " ", page) or data.get("text/markdown") or data["text/plain"]


def numbers_of(text: str) -> list[tuple[str, str]]:
    """The numbers of a text with their units, without times."""
    found = [(number.replace(",", ""), unit.strip()) for number, unit in NUMBER.findall(text)]
    return [(number, unit) for number, unit in found if unit not in TIMES]


def close(stored: str, fresh: str, unit: str) -> bool:
    """Whether two numbers tell the same story."""
    before, after = float(stored), float(fresh)
    if unit not in ("%", "points") and stored.lstrip("-+").isdigit() and fresh.lstrip("-+").isdigit():
        # Images, classes, networks; of a few, such as checks that detect something, some differ between machines.
        return before == after or (max(before, after) <= FEW and abs(before - after) <= SOME)
    if unit not in ("%", "points") and max(abs(before), abs(after)) <= 1:
        return abs(before - after) <= RATE
    return abs(before - after) <= (PER_CENT if abs(before) <= 100 else OTHER * abs(before))


def differences(stored: nbformat.NotebookNode, fresh: nbformat.NotebookNode) -> list[str]:
    """Where the outputs of two runs of a notebook do not tell the same story."""
    found = []
    for index, (before, after) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        if before.cell_type != "code":
            continue
        kinds = [
            [(each.output_type, each.get("name"), sorted(each.get("data", {}))) for each in cell.outputs]
            for cell in (before, after)
        ]
        if kinds[0] != kinds[1]:
            found.append(f"cell {index}: {kinds[0]} was stored, and now there is {kinds[1]}")
            continue
        if "varies" in before.metadata.get("tags", ()):
            continue
        for old, new in zip(before.outputs, after.outputs, strict=True):
            numbers, now = numbers_of(text_of(old)), numbers_of(text_of(new))
            if len(numbers) != len(now):
                found.append(f"cell {index}: {len(numbers)} numbers were stored, and now there are {len(now)}")
            found += [
                f"cell {index}: {number} {unit} was stored, and now it is {other}"
                for (number, unit), (other, _) in zip(numbers, now, strict=False)
                if not close(number, other, unit)
            ]
    return found


def test_the_readme_names_every_notebook():
    named = re.findall(r"\]\((\w+\.ipynb)\)", (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8"))
    assert named == NOTEBOOKS


def test_the_site_shows_every_notebook():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r": notebooks/(\w+)\.md", config) == [Path(name).stem for name in NOTEBOOKS]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_opens_in_colab_and_is_stored_as_run_py_stores_it(name):
    notebook = read(name)
    code = run.code_of(notebook)
    title, badge = notebook.cells[0].source.split("\n")[::2][:2]
    assert title.startswith("# ")
    assert badge.endswith(f"]({PUBLIC}/{name})")
    assert INSTALL.fullmatch(code[0].source)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), f"python notebooks/run.py {name}"
    again = copy.deepcopy(notebook)
    run.tidy(again)
    assert [each["metadata"] for each in again.cells] == [each["metadata"] for each in notebook.cells]
    assert again.metadata == notebook.metadata


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_are_small_and_free_of_noise(name):
    outputs = [output for cell in read(name).cells for output in cell.get("outputs", ())]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert pictures, "a notebook shows a picture before it is run"
    assert max(3 * len(picture) // 4 for picture in pictures) < LARGEST_PICTURE
    assert (ROOT / "notebooks" / name).stat().st_size < LARGEST
    for text in map(text_of, outputs):
        assert not NOISE.search(text), text
        assert socket.gethostname() not in text.split()
    assert not [output for output in outputs if output.get("name") == "stderr" or run.WIDGET in output.get("data", {})]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_twice_and_tells_the_story_that_is_stored(name, tmp_path):
    stored = read(name)
    fresh = copy.deepcopy(stored)
    run.execute(fresh, tmp_path, twice=True)
    silent = [cell.source for cell in run.code_of(fresh) if LONG.search(cell.source) and not shows_progress(cell)]
    run.tidy(fresh)
    assert differences(stored, fresh) == [], f"if the new figures are right: python notebooks/run.py {name}"
    assert silent == [], "these train or measure, and show no bar"


def shows_progress(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell shows a bar; in its outputs it remains."""
    return any(run.WIDGET in output.get("data", {}) for output in cell.outputs)


def notebook_of(*sources: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


@pytest.mark.slow
def test_a_notebook_whose_point_no_longer_holds_fails(tmp_path):
    notebook = notebook_of("gain = -0.01", "assert gain > 0.03", "gain")
    with pytest.raises(CellExecutionError, match="AssertionError"):
        run.execute(notebook, tmp_path)
    assert notebook.cells[2].execution_count is None


@pytest.mark.slow
def test_a_cell_that_cannot_run_twice_fails(tmp_path):
    notebook = notebook_of("import os", "os.mkdir('photos')")
    with pytest.raises(CellExecutionError, match="FileExistsError"):
        run.execute(copy.deepcopy(notebook), tmp_path, twice=True)
    (tmp_path / "photos").rmdir()
    notebook.cells[1].metadata["tags"] = ["once"]
    run.execute(notebook, tmp_path, twice=True)


def stored_output(**output: object) -> nbformat.NotebookNode:
    notebook = notebook_of("shown")
    notebook.cells[0].outputs = [nbformat.v4.new_output(**output)]
    return notebook


def stream(text: str) -> nbformat.NotebookNode:
    return stored_output(output_type="stream", name="stdout", text=text)


def table(html: str) -> nbformat.NotebookNode:
    return stored_output(output_type="display_data", data={"text/html": html, "text/plain": ""})


STORY = "compact_vgg/1: accuracy 92.5% of 240 images, loss 1.31, p 0.03, 88.1 points, 10 epochs in 40 s, about 5 min"


@pytest.mark.parametrize(
    ("stored", "fresh"),
    [
        (stream(STORY), stream(STORY)),
        (
            stream(STORY),
            stream(STORY.replace("92.5", "80.1").replace("in 40 s", "in 260 s").replace("5 min", "19 min")),
        ),
        (stream(STORY), stream(STORY.replace("loss 1.31", "loss 1.19").replace("0.03", "0.17"))),
        (
            table("<style>#T_1 {width: 7px}</style><td>0.52</td>"),
            table("<style>#T_2 {width: 9px}</style><td>0.61</td>"),
        ),
    ],
)
def test_small_differences_and_times_tell_the_same_story(stored, fresh):
    assert differences(stored, fresh) == []


@pytest.mark.parametrize(
    ("stored", "fresh", "message"),
    [
        (stream(STORY), stream(STORY.replace("92.5%", "72.5%")), "cell 0: 92.5 % was stored, and now it is 72.5"),
        (stream(STORY), stream(STORY.replace("240", "241")), "cell 0: 240 images was stored, and now it is 241"),
        (stream(STORY), stream(STORY.replace("0.03", "0.33")), "now it is 0.33"),
        (stream(STORY), stream(STORY.replace("92.5% of", "")), "numbers were stored"),
        (table("<td>0.52</td>"), table("<td>0.22</td>"), "0.52  was stored, and now it is 0.22"),
        (table("<td>0.52</td>"), stream("0.52"), "text/html.*was stored, and now there is.*stdout"),
    ],
)
def test_a_planted_difference_is_found(stored, fresh, message):
    (found,) = differences(stored, fresh)[:1]
    assert re.search(message, found)
