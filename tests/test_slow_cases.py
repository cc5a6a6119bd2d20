"""The table of slow tests names tests that exist."""

from pathlib import Path

import pytest
from slow_cases import SLOW_CASES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("file", SLOW_CASES)
def test_every_case_is_a_test_of_its_file(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    names = [case.split("[")[0] for case in SLOW_CASES[file]]
    assert all(f"def {name}(" in text for name in names if name), names
    assert len(set(SLOW_CASES[file])) == len(names)
