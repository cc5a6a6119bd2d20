"""``nl-jax NAME``: every launcher by its name."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]


def test_every_launcher_is_a_command():
    root = ROOT / "experiments"
    files = [*root.glob("*.py"), *(root / "continual").glob("*.py"), *(root / "evals").glob("*.py")]
    commands = {path for path in files if 'if __name__ == "__main__":' in path.read_text()} - {root / "__main__.py"}
    assert {".".join(path.relative_to(root).with_suffix("").parts) for path in commands} == set(COMMANDS)


def test_help_lists_the_launchers_without_starting_jax():
    code = "import sys; from experiments.__main__ import main; code = main(['nl-jax']); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert "Trains language models on text" in done.stdout


def test_a_reader_that_is_gone_is_no_traceback():
    command = f"{sys.executable} -m experiments --help; echo $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | head -0"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr in ("141\n", "0\n")  # 0 if all fitted into the pipe before head ended


def test_an_unknown_name_is_one_line(capsys):
    assert main(["nl-jax", "langauge_model"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: launcher 'langauge_model': expected one of language_model, compare, context")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_launcher_gets_its_flags(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["unchanged"])
    assert main(["/somewhere/nl-jax", name, "--help"]) == 0
    text = capsys.readouterr().out
    module = importlib.import_module(f"experiments.{name}")
    assert text.startswith(module.__doc__.strip().splitlines()[0])
    assert sys.argv[0] == f"nl-jax {name}"
