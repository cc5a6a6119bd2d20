"""Compiles with fewer optimizations, which halves the time of the suite; subprocesses of tests inherit it."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_programs():
    """Every compiled program holds memory maps, of which a process can have some 65,000; then it crashes."""
    yield
    jax.clear_caches()
