"""The preconditioner: least squares, finite also where a few inputs are far longer than all others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.pretrained.changes import Seen, no_inputs
from nl_jax.pretrained.preconditioner import preconditioned, sparing

SIZE = 48


def inputs(scale, direction=None, count=200):
    """Inputs of which one in ten is ``scale`` times as long, along one direction."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, SIZE))
    x[::10] = scale * (rng.normal(size=SIZE) if direction is None else direction)
    x = jnp.asarray(x, jnp.float32)
    square = jnp.sum(x * x, axis=1)
    return x, Seen((x.T @ x)[None], jnp.full(1, float(count)), jnp.sum(1 / square)[None])


def test_it_is_ridge_regression():
    x, seen = inputs(1.0)
    gradient = jax.random.normal(jax.random.key(0), (1, SIZE, 3))
    norm = float(seen.inputs[0] / seen.inverse[0])
    wide = np.asarray(x, np.float64)
    expected = np.linalg.solve(wide.T @ wide + 0.5 * norm * np.eye(SIZE), np.asarray(gradient[0]))
    np.testing.assert_allclose(preconditioned(seen, gradient, 0.5)[0], expected, rtol=1e-3, atol=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scale=st.sampled_from([1.0, 1e3, 1e6, 1e12, 1e17]), ridge=st.sampled_from([1e-6, 0.1, 10.0, 1e9]))
def test_it_is_finite_however_long_some_inputs_are(scale, ridge):
    _, seen = inputs(scale)
    gradient = jnp.ones((1, SIZE, 2))
    step, slope = jax.value_and_grad(lambda g: jnp.sum(preconditioned(seen, g, ridge)))(gradient)
    assert np.isfinite(step)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_a_sum_that_its_type_cannot_factor_still_moves_other_inputs_less_than_new_ones(scale):
    x, seen = inputs(scale)
    step = preconditioned(seen, x[None, :1].swapaxes(1, 2) @ jnp.ones((1, 1, 2)), 1e-6)
    assert np.all(np.isfinite(step))
    assert np.any(np.asarray(step) != 0)


def test_inputs_that_are_not_finite_end_in_a_step_that_is_not():
    _, seen = inputs(1.0)
    broken = seen._replace(products=seen.products.at[0, 3, 3].set(jnp.nan))
    assert not np.all(np.isfinite(preconditioned(broken, jnp.ones((1, SIZE, 2)), 1.0)))


def test_steps_are_multiplied_by_the_inverse_and_keep_what_is_new():
    x, seen = inputs(1.0)
    norm = float(seen.inputs[0] / seen.inverse[0])
    wide = np.asarray(x, np.float64)
    expected = np.linalg.inv(np.eye(SIZE) + wide.T @ wide / (0.5 * norm))
    np.testing.assert_allclose(sparing(seen, 0.5)[0], expected, atol=1e-5)
    one = jnp.zeros((1, SIZE, SIZE)).at[0, 0, 0].set(12.0)  # the same input three times, of squared length 4
    found = sparing(Seen(one, jnp.full(1, 3.0), jnp.full(1, 0.75)), 1.5)[0]
    np.testing.assert_allclose(found, jnp.eye(SIZE).at[0, 0].set(1 / (1 + 3 / 1.5)), atol=1e-5)
    np.testing.assert_array_equal(sparing(no_inputs(2, SIZE), 0.5), np.broadcast_to(np.eye(SIZE), (2, SIZE, SIZE)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    scale=st.sampled_from([1.0, 1e3, 1e6, 1e12, 1e17]),
    ridge=st.sampled_from([1e-6, 0.1, 10.0, 1e9]),
    count=st.sampled_from([1, 12, 48, 100]),
)
def test_no_spared_step_is_longer(scale, ridge, count):
    """Up to rounding, which a ridge of a millionth multiplies by a million."""
    _, seen = inputs(scale, count=count)
    assert np.linalg.norm(np.asarray(sparing(seen, ridge)[0], np.float64), 2) <= 1.05


def test_nothing_seen_gives_no_step():
    assert not np.any(preconditioned(no_inputs(2, SIZE), jnp.zeros((2, SIZE, 3)), 1.0))
