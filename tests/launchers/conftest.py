"""What tests of launchers share as fixtures."""

import functools

import jax
import pytest

from experiments.common import text_runs


@pytest.fixture(scope="module")
def small_models():
    """Lets the launcher build models that compile quickly; everything else is as it is."""
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(text_runs.configuration, num_layers=1)
        patch.setattr(text_runs, "configuration", small)
        yield


@pytest.fixture(autouse=True, scope="module")
def no_compilation_cache():
    """Leaves out a cache of compiled programs that the user has: the benchmark of compile times refuses one."""
    cache = jax.config.values["jax_compilation_cache_dir"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        jax.config.update("jax_compilation_cache_dir", None)
        yield
        jax.config.update("jax_compilation_cache_dir", cache)
