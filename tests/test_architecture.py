"""The rooms of the project: which may import which, how large a file and a function may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up: a room imports from those before it only.
ROOMS = (
    *("_xla", "errors", "files", "trees", "parameter_axes", "plotting", "ops", "memory", "levels", "optim", "tasks"),
    *("data", "parallel", "modules", "models", "pretrained", "streaming", "costs", "evaluation", "training"),
)
HELPERS = (
    *("common", "benchmarking", "optimizer_comparison", "subject_changes", "fault_rounds", "continual_methods"),
    *("eval_runs", "reporting"),
)
COMMANDS = ("continual", "evals")  # packages of commands
IS_COMMAND = re.compile(r"^(def main\(|define_flags, main = )", re.M)
LINES, FUNCTION_LINES, EVALUATION_LINES = 400, 60, 60
FILES = sorted(path for folder in ("nl_jax", "experiments") for path in (ROOT / folder).rglob("*.py"))


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module(path) for path in FILES}


def imports(path):
    """Modules of this project that a file imports, also inside of functions, unless only for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("nl_jax", "experiments"):
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in NAMES else node.module


def room(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "nl_jax")], ids=module)
def test_no_arrow_points_up(path):
    own = module(path)
    if own == "nl_jax":
        return
    for name in imports(path):
        assert name.startswith("nl_jax."), f"{own} imports {name}"
        assert ROOMS.index(room(name)) <= ROOMS.index(room(own)), f"{own} imports {name}, which stands above it"


def test_every_room_is_named():
    found = {room(name) for name in NAMES if name.startswith("nl_jax.")}
    assert found == set(ROOMS)


def test_no_import_goes_round():
    graph = {module(path): set(imports(path)) - {module(path)} for path in FILES}
    for name, needed in graph.items():  # the modules of a package do not count what the package exports from them
        needed -= {package for package in NAMES if name.startswith(package + ".")}
    done: set[str] = set()

    def visit(name, path):
        assert name not in path, " imports ".join((*path, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_only_commands_stand_at_the_top_of_experiments():
    for path in (ROOT / "experiments").iterdir():
        if path.suffix == ".py" and path.stem != "__init__":
            assert IS_COMMAND.search(path.read_text(encoding="utf-8")), path
        elif path.is_dir() and any(path.glob("*.py")):
            assert path.name in (*HELPERS, *COMMANDS), path
    for package in COMMANDS:
        for path in (ROOT / "experiments" / package).glob("*.py"):
            assert path.stem == "__init__" or IS_COMMAND.search(path.read_text(encoding="utf-8")), path


def test_no_command_imports_another():
    folders = [ROOT / "experiments", *(ROOT / "experiments" / package for package in COMMANDS)]
    commands = {module(path) for folder in folders for path in folder.glob("*.py") if path.stem != "__init__"}
    for path in FILES:
        if module(path).startswith("experiments."):
            assert not commands & set(imports(path)), path


def test_evaluations_are_descriptions():
    files = list((ROOT / "experiments" / "evals").glob("*.py"))
    assert len(files) > 5
    assert {
        path.stem: lines for path in files if (lines := len(path.read_text().splitlines())) > EVALUATION_LINES
    } == {}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node) is not None
            first = node.body[1] if documented and len(node.body) > 1 else node.body[0]
            length = node.end_lineno - first.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"
