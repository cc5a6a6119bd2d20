"""The forms of operations that a TPU kernel can compile give what the usual ones do, and so do their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.ops import decay_matrix, shift, solve_unit_lower
from nl_jax.ops.in_kernel import in_kernel, is_in_kernel


def both(function, *arguments):
    """Values and gradients of a sum of sines, as usual and in the form for a kernel."""

    def loss(*arguments):
        y = function(*arguments)
        return jnp.sum(jnp.sin(y)), y

    def found():
        return jax.value_and_grad(loss, tuple(range(len(arguments))), has_aux=True)(*arguments)

    with jax.enable_x64(True):
        usual = found()
        with in_kernel():
            assert is_in_kernel()
            other = found()
    assert not is_in_kernel()
    return usual, other


def assert_near(usual, other, tolerance=1e-10):
    for a, b in zip(jax.tree.leaves(usual), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * (1 + np.max(np.abs(a))))


def system(size, columns, seed, kind):
    """A chunk's system: Gram matrices of unit-length keys, below the diagonal."""
    random = np.random.default_rng(seed)
    keys = random.normal(size=(size, 4))
    if kind == "equal keys":  # the powers of L are then as large as they can be
        keys[:] = keys[0]
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    return np.tril(keys @ keys.T, -1), random.normal(size=(size, columns))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 5), st.integers(0, 9), st.sampled_from(["random", "equal keys"]))
def test_a_solution(size, columns, seed, kind):
    assert_near(*both(solve_unit_lower, *system(size, columns, seed, kind)), tolerance=1e-8)


def test_solutions_of_a_stack():
    lower, right = (np.stack(u)[None] for u in zip(*(system(12, 3, seed, "random") for seed in range(3)), strict=True))
    assert_near(*both(solve_unit_lower, lower, right))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(0, 9), st.sampled_from([0.0, 0.3, 1.0]))
def test_decay(size, seed, share_of_zeros):
    random = np.random.default_rng(seed)
    rate = random.uniform(size=(1, 1, size)) * (random.uniform(size=size) >= share_of_zeros)
    assert_near(*both(decay_matrix, rate))


@pytest.mark.parametrize(("axis", "first"), [(-1, 1.0), (-2, 0.0), (0, 0.5)])
def test_shift(axis, first):
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    assert_near(*both(lambda x: shift(x, axis, first), x), tolerance=0.0)
