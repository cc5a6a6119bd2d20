"""Compiles with fewer optimizations, which halves the time of the suite; subprocesses of tests inherit it."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("any_machine", deadline=None)  # no test fails because its machine is busy
hypothesis.settings.load_profile("any_machine")


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_programs():
    """Every compiled program holds memory maps, of which a process can have some 65,000; then it crashes."""
    yield
    jax.clear_caches()
