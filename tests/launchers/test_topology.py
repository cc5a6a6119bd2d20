"""What the launcher that compiles for other machines says of a compiler that does not fit."""

import jax
import pytest

from experiments.topology import program_text
from nl_jax import InputError


class Unreadable:
    """A compiled program whose text JAX cannot parse."""

    def as_text(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nstack")


def test_a_compiler_newer_than_jax_is_one_line():
    with pytest.raises(InputError, match=rf"^jax {jax.__version__} cannot read .*INTERNAL: RET_CHECK failure\); exp"):
        program_text(Unreadable())


def test_a_program_is_read():
    assert "multiply" in program_text(jax.jit(lambda x: x * x).lower(1.0).compile())
