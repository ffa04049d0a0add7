"""Runs notebooks, each in an empty folder and a kernel of its own, and stores them with what they print and draw.

    python notebooks/run.py [NAME ...]

Without names it runs all of them. Do this after each change to a notebook: `tests/test_notebooks.py` runs them again
and compares. Not stored is what helps only while a cell runs, or differs every time: progress bars, warnings, times of
execution, addresses in memory.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).parent
SECONDS = 1800  # a notebook takes a few minutes; this is for machines that do much else
COLOURS = 128  # of a stored picture
WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def code_of(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: NotebookNode, folder: Path, *, twice: bool = False) -> None:
    """Runs all cells, on the package of this checkout.

    Args:
        notebook: Gets the outputs.
        folder: Where it runs.
        twice: Whether to run all cells a second time, in the same kernel, as a reader does who tries things out. Cells
            with the tag `once`, which take long and write no files, run once.

    Raises:
        CellExecutionError: If a cell fails, in either round.
        CellTimeoutError: If all this takes too long.
    """
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    deadline = time.monotonic() + SECONDS
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
    )
    with client.setup_kernel(env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}):
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        if twice:
            client.nb = copy.deepcopy(notebook)
            for index, cell in enumerate(client.nb.cells):
                if "once" not in cell.metadata.get("tags", ()):
                    client.execute_cell(cell, index)


def tidy(notebook: NotebookNode) -> None:
    """Leaves in a notebook that has run what is worth storing."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    for index, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            kept = [_tidied(output, index) for output in cell.outputs if _is_kept(output)]
            cell.outputs = []
            for output in kept:  # a bar between two lines parts them
                if cell.outputs and "text" in output and "text" in cell.outputs[-1]:
                    cell.outputs[-1].text += output.text
                else:
                    cell.outputs.append(output)


def _is_kept(output: NotebookNode) -> bool:
    return output.get("name") != "stderr" and WIDGET not in output.get("data", {})


def _tidied(output: NotebookNode, index: int) -> NotebookNode:
    for kind, content in output.get("data", {}).items():
        if kind == "image/png":
            output.data[kind] = _smaller(content)
        elif kind == "text/html":  # pandas names a styled table by a random number
            output.data[kind] = re.sub(r"\bT_[0-9a-f]{5}", f"T_{index:05}", content)
        elif kind == "text/plain":
            output.data[kind] = re.sub(r" at 0x[0-9a-f]+", "", content)
    return output


def _smaller(png: str) -> str:
    """The picture with fewer colours, which nobody sees."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        stored = io.BytesIO()
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(stored, "PNG", optimize=True)
    return base64.b64encode(stored.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="Such as 00_defend_your_model; default: all.")
    names = parser.parse_args().names or sorted(path.stem for path in HERE.glob("*.ipynb"))
    for path in [HERE / f"{Path(name).stem}.ipynb" for name in names]:
        began = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        tidy(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - began:.0f} s, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
