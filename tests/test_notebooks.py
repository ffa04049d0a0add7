"""Every notebook runs from top to bottom, proves what it says, and is stored without what it printed."""

import re
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
PUBLIC = "https://colab.research.google.com/github/satm-tf/satm_tf/blob/main/notebooks"
INSTALL = re.compile(
    r"import sys\n\nif \"google\.colab\" in sys\.modules:\n"
    r"    %pip install -q (git\+https://github\.com/satm-tf/satm_tf"
    r"|\"satm_tf\[[a-z,]+\] @ git\+https://github\.com/satm-tf/satm_tf\")"
)
SECONDS = 900  # a notebook takes about one minute; this is for machines that do much else


def execute(notebook, folder, monkeypatch):
    """Runs all cells, in a kernel of its own, on the package of this checkout; and stops waiting for one that hangs."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    deadline = time.monotonic() + SECONDS
    NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
    ).execute()


def test_the_readme_names_every_notebook():
    named = re.findall(r"\]\((\w+\.ipynb)\)", (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8"))
    assert named == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_without_outputs_and_opens_in_colab(name):
    cells = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code), "pre-commit run nbstripout"
    title, badge = cells[0].source.split("\n")[::2][:2]
    assert title.startswith("# ")
    assert badge.endswith(f"]({PUBLIC}/{name})")
    assert INSTALL.fullmatch(code[0].source)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    execute(nbformat.read(ROOT / "notebooks" / name, as_version=4), tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_notebook_whose_point_no_longer_holds_fails(tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell(source) for source in ("gain = -0.01", "assert gain > 0.03", "gain")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(CellExecutionError, match="AssertionError"):
        execute(notebook, tmp_path, monkeypatch)
    assert notebook.cells[2].execution_count is None
