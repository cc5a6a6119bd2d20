"""The closed form with a retention per channel against its definition token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.memory import channel_decay, end_of_channel_chunk, read_channel_chunk, solve_channel_chunk


def case(size, removes, seed=0):
    rng = np.random.default_rng(seed)
    keys, queries, kappa = rng.standard_normal((3, 2, size, 5))
    kappa /= np.linalg.norm(kappa, axis=-1, keepdims=True)
    retention = rng.choice([0.0, 0.3, 0.9, 1.0], (2, size, 5), p=[0.02, 0.2, 0.4, 0.38])
    removal = (kappa, kappa * rng.uniform(0, 1, (2, size, 5))) if removes else None
    return rng.standard_normal((2, 5, 3)), keys, rng.standard_normal((2, size, 3)), removal, retention, queries


def by_token(weights, keys, values, removal, retention, queries):
    answers = []
    for t in range(keys.shape[1]):
        removed = 0.0
        if removal is not None:
            kappa, b = (u[:, t] for u in removal)
            removed = b[:, :, None] * np.einsum("hi,hio->ho", kappa, weights)[:, None, :]
        weights = retention[:, t, :, None] * weights - removed + keys[:, t, :, None] * values[:, t, None, :]
        answers.append(np.einsum("hi,hio->ho", queries[:, t], weights))
    return np.stack(answers, 1), weights


@jax.jit
def closed_form(weights, keys, values, removal, retention, queries):
    chunk = solve_channel_chunk(weights, keys, values, removal, channel_decay(retention))
    return read_channel_chunk(chunk, queries), end_of_channel_chunk(chunk)


@pytest.mark.parametrize("removes", [True, False])
@pytest.mark.parametrize("size", [1, 8, 19, 70])
def test_closed_form_is_the_recurrence(size, removes):
    with jax.enable_x64(True):
        arguments = case(size, removes)
        for found, expected in zip(closed_form(*arguments), by_token(*arguments), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_finite_where_a_channel_forgets_everything():
    weights, keys, values, removal, _, queries = case(19, removes=True)

    def loss(retention):
        return sum(jnp.sum(u) for u in closed_form(weights, keys, values, removal, retention, queries))

    assert np.all(np.isfinite(jax.grad(loss)(jnp.zeros((2, 19, 5)))))
