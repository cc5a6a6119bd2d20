"""What tests of launchers share as fixtures."""

import functools

import pytest

from experiments.common import text_runs


@pytest.fixture(scope="module")
def small_models():
    """Lets the launcher build models that compile quickly; everything else is as it is."""
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(text_runs.configuration, num_layers=1)
        patch.setattr(text_runs, "configuration", small)
        yield
