"""Importing the package is quick: what it takes beyond JAX, Flax and optax, in seconds of one core."""

import subprocess
import sys

import pytest

MEASURED = """
import resource
import flax.nnx, jax, optax

def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

before = used()
import {modules}
print(used() - before)
assert not jax._src.xla_bridge.backends_are_initialized()  # devices are asked for later, by those who need them
"""


@pytest.mark.parametrize(
    ("modules", "seconds"),
    [
        ("nl_jax", 1.5),
        ("nl_jax.levels, nl_jax.memory, nl_jax.optim, nl_jax.modules, nl_jax.models, nl_jax.streaming", 1.5),
    ],
)
def test_an_import_takes_little_of_a_core(modules, seconds):
    code = MEASURED.format(modules=modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < seconds
