"""The version is said once, and what is built from this project works where there is no checkout."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import nl_jax
from experiments.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("nl_jax", "experiments", "tests", "docs", "pyproject.toml", "MANIFEST.in")
DOCUMENTS = ("README.md", "LICENSE", "CITATION.cff", "BUILD_NOTES.md", "CHANGELOG.md", "mkdocs.yml")


def sources(*folders: str) -> set[str]:
    """Paths of the Python files in these folders, relative to the root."""
    return {path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")}


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [nl_jax.__version__]
    assert "2512.24695" in citation


def test_the_changelog_begins_with_this_version_and_python_versions_are_declared_once():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", changes, re.MULTILINE)[0] == nl_jax.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert declared[0] == project["requires-python"].removeprefix(">=")
    assert all(version in (ROOT / ".ci" / "wheel").read_text(encoding="utf-8") for version in declared)
    hosts = {url.split("/")[2] for url in project["urls"].values()}
    assert hosts == {"arxiv.org"}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that was built from it.

    They are built from a copy: setuptools would write into the checkout, and pack what an earlier build left there.
    """
    copy, built = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    for name in (*BUILT_FROM, *DOCUMENTS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    run("-m", "build", "--no-isolation", f"--outdir={built}", str(copy), cwd=built)
    return built


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """A folder with nothing but the installed wheel."""
    target = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", f"--target={target}", str(wheel), cwd=target)
    return target


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    """What this Python prints, run in ``cwd`` with these environment variables added; the test fails if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    """As `run`, with the wheel and its dependencies as all that can be imported.

    Without ``-S`` an editable install would supply from the checkout whatever the wheel lacks.
    """
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return run("-S", *arguments, cwd=cwd, PYTHONPATH=os.pathsep.join([str(installed), *dependencies]))


@pytest.mark.slow
def test_the_wheel_holds_every_module(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.split("-")[:2] == ["nl_jax", nl_jax.__version__]
    assert {name for name in names if name.endswith(".py")} == sources("nl_jax", "experiments")
    assert "nl_jax/py.typed" in names


@pytest.mark.slow
def test_the_sdist_holds_the_tests_and_documents(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sources("nl_jax", "experiments", "tests", "docs") | {*DOCUMENTS} <= names
    assert {"docs/how_to/add_a_mixer.md", "experiments/figures/compare.png"} <= names


@pytest.mark.slow
def test_the_console_script_runs_without_the_checkout(installed, tmp_path):
    script = str(installed / "bin" / "nl-jax")
    listed = run_installed(installed, tmp_path, script, "--help")
    assert listed.startswith("nl-jax NAME")
    assert all(f"  {name} " in listed for name in COMMANDS)
    assert "--seq_len" in run_installed(installed, tmp_path, script, "recall", "--help")


@pytest.mark.slow
def test_every_module_that_is_imported_is_the_installed_one(installed, tmp_path):
    code = f"""
import importlib, sys
for name in {COMMANDS}:
    importlib.import_module(f"experiments.{{name}}")
own = [module for name, module in sys.modules.items() if name.partition(".")[0] in ("nl_jax", "experiments")]
print(*(module.__file__ for module in own if getattr(module, "__file__", None)), sep="\\n")  # a folder may have none
"""
    files = run_installed(installed, tmp_path, "-c", code).splitlines()
    assert len(files) > len(COMMANDS)
    assert all(Path(file).is_relative_to(installed) for file in files)
