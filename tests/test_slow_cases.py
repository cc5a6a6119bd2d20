"""The table of slow tests names tests that exist."""

import ast
from pathlib import Path

import pytest
from slow_cases import SLOW_CASES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("file", SLOW_CASES)
def test_every_case_is_a_test_of_its_file(file):
    tests = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            tests.add(node.name)
        elif isinstance(node, ast.Assign):
            tests |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    names = [case.split("[")[0] for case in SLOW_CASES[file]]
    assert not {name for name in names if name} - tests
    assert len(set(SLOW_CASES[file])) == len(names)
