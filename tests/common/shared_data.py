"""Data that is not in the repository: in the folder of $NL_JAX_DATA, or in shared/data beside the repository."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("NL_JAX_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def data_file(name):
    """The path of a file or folder; skips the test where it is absent."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no {name} in {FOLDER}: set NL_JAX_DATA to the folder that has it")
    return path
