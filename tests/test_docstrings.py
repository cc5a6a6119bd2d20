"""Every public function and class has an example in its docstring, which runs and gives what it says."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
from public_names import PUBLIC

import nl_jax

ROOT = Path(nl_jax.__file__).parent
WITH_EXAMPLES = [
    "nl_jax." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_every_public_function_and_class_has_an_example():
    named = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value) or inspect.isclass(value)}
    assert len(named) > 290
    assert [name for name, value in named.items() if ">>> " not in (value.__doc__ or "")] == []


def test_examples_are_found():
    assert len(WITH_EXAMPLES) > 12
    assert {"nl_jax.levels.schedule", "nl_jax.streaming.stream", "nl_jax.optim.m3"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
