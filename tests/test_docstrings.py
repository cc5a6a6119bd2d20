"""Every example in a docstring of the package runs and gives what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

import nl_jax

ROOT = Path(nl_jax.__file__).parent
WITH_EXAMPLES = [
    "nl_jax." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_examples_are_found():
    assert len(WITH_EXAMPLES) > 12
    assert {"nl_jax.levels.schedule", "nl_jax.streaming.stream", "nl_jax.optim.m3"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
