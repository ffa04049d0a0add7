"""The rooms and the arrows between them, as docs/contributing.md has them, read from the text of the imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "satm_tf"
# Each room may import those of the rows above it that it names; the command modules, and the package itself, all.
BASE = {"bars", "configurable", "storage", "layers", "metrics", "start_up"}
ROOMS = {
    **{room: set() for room in BASE},
    "attacks": BASE,
    "models": BASE,
    "data": BASE,
    "training": BASE | {"attacks", "models"},
    "detection": BASE | {"attacks", "models"},
    "evaluation": BASE | {"attacks", "models"},
    "serving": BASE | {"attacks", "models", "data", "detection", "evaluation"},
    "command_line": BASE | {"training", "serving"},
    "experiment": BASE
    | {"attacks", "models", "data", "training", "detection", "evaluation", "serving", "command_line"},
    "paper": BASE | {"attacks", "models", "data", "training", "evaluation", "serving", "experiment"},
}
COMMANDS = {"train", "harden", "evaluate", "attack", "export", "predict", "prepare", "reproduce"}
PRIVATE_KERAS = re.compile(
    r"keras\.src|\b_maybe_symbolic_build\b|\b_flatten_layers\b|\.(?:_value|_iterations)\b(?!\s*=\s*None)"
)
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(text: str) -> set[str]:
    """The modules of the package that a module imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "satm_tf"}


def rooms_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if "." in name}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_file_stands_in_a_known_room():
    assert {room(path) for path in FILES} - set(ROOMS) - COMMANDS == {"__init__", "__main__"}


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_imports_only_those_it_may(name):
    used = {
        (str(path.relative_to(PACKAGE)), other)
        for path in FILES
        if room(path) == name
        for other in rooms_of(imported(path.read_text(encoding="utf-8")))
    }
    assert {each for each in used if each[1] not in ROOMS[name] | {name, "__version__"}} == set()


def test_an_import_that_a_room_may_not_make_is_found():
    text = "def f():\n    from satm_tf.training import Scheme\n    import satm_tf.data.pipeline\n"
    assert rooms_of(imported(text)) == {"training", "data"}


def test_modules_import_each_other_without_a_circle():
    modules = {".".join(("satm_tf", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}

    def targets(name: str) -> set[str]:
        # `from satm_tf.data import folder` is of the module, `from satm_tf.data import Examples` of the package.
        names = imported(modules[name].read_text(encoding="utf-8"))
        found = {each if each in modules else each.rpartition(".")[0] for each in names}
        # A package that gathers its own modules' names is above them.
        return {each for each in found if each in modules and not (name + ".").startswith(each + ".")}

    below: dict[str, set[str]] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in below:
            for other in sorted(targets(name)):
                visit(other, (*path, name))
            below[name] = targets(name)

    for name in modules:
        visit(name, ())


def test_private_keras_stands_in_one_file():
    found = {str(path.relative_to(PACKAGE)) for path in FILES if PRIVATE_KERAS.search(path.read_text(encoding="utf-8"))}
    assert found == {"training/private_keras.py"}


# Modules that another file's tests run through the door that they stand behind.
TESTED_IN = {
    "__main__.py": "test_command_line.py",
    "train.py": "experiment/test_running.py",
    "harden.py": "experiment/test_hardening.py",
    "attacks/carlini_wagner.py": "attacks/test_minimum_distortion.py",
    "attacks/deepfool.py": "attacks/test_minimum_distortion.py",
    "attacks/hop_skip_jump.py": "attacks/test_minimum_distortion.py",
    "attacks/square.py": "attacks/test_auto.py",
    "data/synthetic/renderer.py": "data/synthetic/test_faces.py",
    "data/synthetic/traits.py": "data/synthetic/test_faces.py",
    "data/unlabelled.py": "data/test_formats.py",
    "evaluation/blocks.py": "evaluation/test_transfer.py",
    "evaluation/report/figures.py": "evaluation/report/test_page.py",
    "evaluation/report/illustrations.py": "evaluation/report/test_page.py",
    "evaluation/report/sections.py": "evaluation/report/test_page.py",
    "training/crafting.py": "training/test_steps.py",
    "training/recall.py": "training/test_steps.py",
    "training/snapshot.py": "training/test_checkpoint.py",
}


def test_every_module_has_its_test_file_or_is_tested_in_another():
    tests = PACKAGE.parent / "tests"
    modules = {str(path.relative_to(PACKAGE)) for path in FILES if path.name != "__init__.py"}
    without = {name for name in modules if not (tests / name).with_name(f"test_{Path(name).name}").exists()}
    assert without == set(TESTED_IN)
    assert {name for name, other in TESTED_IN.items() if not (tests / other).exists()} == set()
