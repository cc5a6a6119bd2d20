"""Compiles quickly, and each program once: what takes the time of these tests is compiling. Subprocesses do so, too."""

import gc
import importlib.metadata
import os
import tempfile
import time

# The emitters of fusions take half of the compiler's time; splitting a program over threads, and a scheduler for them,
# a third of what is left, where each core has a worker. Devices that share a busy core may wait for each other longer
# than the 40 seconds after which a process is aborted. Other jaxlib versions abort at a flag that they do not know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_collective_call_terminate_timeout_seconds=600"
    " --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_enable_concurrency_optimized_scheduler=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from slow_cases import SLOW_CASES

hypothesis.settings.register_profile("any_machine", deadline=None)  # no test fails because its machine is busy
hypothesis.settings.load_profile("any_machine")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Marks the tests of ``slow_cases.py``."""
    for item in items:
        file, _, name = item.nodeid.partition("::")
        if any(map(name.startswith, SLOW_CASES.get(file, ()))):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """Looks for garbage less often: tracing makes many objects, few of them in cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


STARTED = time.monotonic()


@pytest.hookimpl(tryfirst=True)  # before fixtures are made
def pytest_runtest_setup(item):
    """Skips slow tests when the minutes of SLOW_TEST_MINUTES are over, so that a run ends on any machine."""
    minutes = float(os.environ.get("SLOW_TEST_MINUTES", "inf"))
    if item.get_closest_marker("slow") and time.monotonic() - STARTED > 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes of SLOW_TEST_MINUTES are over")


@pytest.fixture(autouse=True, scope="session")
def _keep_compiled_programs():
    """Later modules, launchers that run twice and subprocesses of this worker find what it has compiled on disk."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # the user has a cache
        yield
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        compilation_cache.reset_cache()
        yield


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_programs():
    """Every compiled program holds memory maps, of which a process can have some 65,000; then it crashes."""
    yield
    jax.clear_caches()
    gc.collect()
