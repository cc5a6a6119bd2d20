"""The least-squares memory against ridge regression, and against recursive least squares token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from nl_jax import Schedule
from nl_jax.levels import Pair, from_least_squares
from nl_jax.memory import init_least_squares, learn_least_squares, least_squares_weights, read_least_squares

SIZE_IN, SIZE_OUT = 5, 3
learn = jax.jit(learn_least_squares)


def recursive(keys, values, gamma, ridge):
    """Wᵀ after every pair: the covariance P and its gain per token; the part of the ridge that decays is put back."""
    size = keys.shape[-1]
    P, W = np.eye(size) / ridge, np.zeros((size, values.shape[-1]))
    for k, v, g in zip(keys, values, gamma, strict=True):
        decayed = np.linalg.inv(g * np.linalg.inv(P) + (1 - g) * ridge * np.eye(size))
        P, W = decayed, g * decayed @ np.linalg.inv(P) @ W
        gain = P @ k / (1 + k @ P @ k)
        W, P = W + np.outer(gain, v - k @ W), P - np.outer(gain, k @ P)
    return W


def direct(keys, values, weights, ridge):
    return np.linalg.solve((keys.T * weights) @ keys + ridge * np.eye(keys.shape[1]), (keys.T * weights) @ values)


def in_chunks(state, keys, values, gamma, cuts):
    """Every chunk is padded to one length, so that one program serves all."""
    for part in np.split(np.arange(len(keys)), sorted(cuts)):
        rest = len(keys) - len(part)
        padded = (np.pad(u[part], [(0, rest), (0, 0)]) for u in (keys, values))
        state = learn(state, *padded, np.pad(gamma[part], (0, rest), constant_values=1.0))
    return state


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    cuts=st.lists(st.integers(0, 17), max_size=4),
    ridge=st.sampled_from([1e-3, 1.0, 30.0]),
    lowest=st.sampled_from([0.0, 0.5, 1.0]),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_any_chunks_in_any_order_are_ridge_regression(seed, cuts, ridge, lowest, spread):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        keys = rng.standard_normal((17, SIZE_IN)) * np.logspace(0, -spread, SIZE_IN) + 1.0
        values, queries = rng.standard_normal((17, SIZE_OUT)), rng.standard_normal((4, SIZE_IN))
        gamma = np.maximum(lowest, rng.uniform(0, 1, 17))
        weights = np.append(np.cumprod(gamma[:0:-1])[::-1], 1.0)
        expected = direct(keys, values, weights, ridge)
        np.testing.assert_allclose(recursive(keys, values, gamma, ridge), expected, rtol=1e-6, atol=1e-8)
        empty = init_least_squares(SIZE_IN, SIZE_OUT, ridge, dtype=jnp.float64)
        state = in_chunks(empty, keys, values, gamma, cuts)
        np.testing.assert_allclose(least_squares_weights(state), expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(read_least_squares(state, queries), queries @ expected, rtol=1e-9, atol=1e-9)
        if lowest == 1.0:
            order = rng.permutation(17)
            again = in_chunks(empty, keys[order], values[order], gamma, cuts)
            np.testing.assert_allclose(least_squares_weights(again), expected, rtol=1e-9, atol=1e-9)


def test_no_pairs_change_nothing():
    state = learn(init_least_squares(2, 1), jnp.ones((3, 2)), jnp.ones((3, 1)))
    jax.tree.map(np.testing.assert_array_equal, learn(state, jnp.ones((0, 2)), jnp.ones((0, 1)), 0.5), state)


def test_leading_axes_are_independent_memories_with_a_ridge_each():
    with jax.enable_x64(True):
        rng, ridge = np.random.default_rng(0), np.array([0.1, 10.0])
        keys, values = rng.standard_normal((2, 9, SIZE_IN)), rng.standard_normal((2, 9, SIZE_OUT))
        state = learn(init_least_squares(SIZE_IN, SIZE_OUT, ridge, batch=(2,), dtype=jnp.float64), keys, values)
        expected = [direct(k, v, np.ones(9), r) for k, v, r in zip(keys, values, ridge, strict=True)]
        np.testing.assert_allclose(least_squares_weights(state), expected, rtol=1e-9, atol=1e-10)


@functools.partial(jax.jit, static_argnames="chunk")
def after(keys, values, ridge, retention, chunk):
    def step(state, pairs):
        return learn_least_squares(state, *pairs, retention), None

    start = init_least_squares(keys.shape[-1], values.shape[-1], ridge)
    pairs = tuple(u.reshape(-1, chunk, u.shape[-1]) for u in (keys, values))
    state = jax.lax.scan(step, start, pairs)[0]
    return state, least_squares_weights(state)


@pytest.mark.parametrize(("spread", "mean"), [(1.0, 0.0), (3.0, 0.0), (2.0, 2.0)])
def test_a_hundred_thousand_correlated_tokens_in_float32(spread, mean):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    keys = ((rng.standard_normal((100_000, 32)) * np.logspace(0, -spread, 32) + mean) @ basis).astype(np.float32)
    values = (keys @ rng.standard_normal((32, 4)) + 0.1 * rng.standard_normal((100_000, 4))).astype(np.float32)
    state, found = after(keys, values, 1.0, 1.0, chunk=20)
    np.testing.assert_array_equal(state.gram, state.gram.T)
    assert np.linalg.eigvalsh(np.asarray(state.gram, float) + np.asarray(state.lost[0], float) + np.eye(32))[0] > 0.99
    expected = direct(keys.astype(float), values.astype(float), np.ones(100_000), 1.0)
    answers = keys @ expected
    assert np.linalg.norm(keys @ found - answers) < 2e-4 * np.linalg.norm(answers)


RNG = np.random.default_rng(1)
STREAMS = {
    "huge": 1e15 * RNG.standard_normal((640, SIZE_IN)),
    "huge, one token": 1e15 * np.repeat(RNG.standard_normal((1, SIZE_IN)), 640, axis=0),
    "the largest numbers": 3e38 * np.sign(RNG.standard_normal((640, SIZE_IN))),
    "all sizes": np.logspace(-37, 37, 640)[:, None] * RNG.standard_normal((640, SIZE_IN)),
    "zero": np.zeros((640, SIZE_IN)),
    "denormal": np.full((640, SIZE_IN), 1e-40),
}


@pytest.mark.parametrize("retention", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("ridge", [1e-6, 1.0])
@pytest.mark.parametrize("stream", STREAMS)
def test_any_finite_pairs_leave_a_finite_symmetric_state_and_finite_weights(stream, ridge, retention):
    keys = STREAMS[stream].astype(np.float32)
    for values in (keys, keys[::-1]):
        state, weights = after(keys, values, ridge, retention, chunk=32)
        for leaf in jax.tree.leaves((state, weights)):
            assert np.all(np.isfinite(leaf))
        for part in (state.gram, state.lost[0]):
            np.testing.assert_array_equal(part, part.T)


def test_derivatives_reach_the_pairs_the_retention_and_the_ridge():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        point = [rng.standard_normal(s) for s in ((6, SIZE_IN), (6, SIZE_OUT), (2, SIZE_IN))]
        point += [np.linspace(0.5, 1.0, 6), np.array(0.7)]

        def loss(keys, values, queries, gamma, ridge):
            state = init_least_squares(SIZE_IN, SIZE_OUT, ridge, dtype=jnp.float64)
            state = learn_least_squares(state, keys[:4], values[:4], gamma[:4])
            state = learn_least_squares(state, keys[4:], values[4:], gamma[4:])
            return jnp.sum(jnp.sin(read_least_squares(state, queries)))

        check_grads(jax.jit(loss), point, order=1, modes=("fwd", "rev"), eps=1e-5, rtol=1e-6)


def test_a_level_is_the_memory():
    rng = np.random.default_rng(0)
    keys, values = (np.float32(rng.standard_normal((12, 2, size))) for size in (SIZE_IN, SIZE_OUT))
    alpha = np.float32(rng.uniform(0.5, 1.0, (12, 2)))
    schedule = Schedule([from_least_squares("m", SIZE_IN, SIZE_OUT, ridge=0.1, period=4, batch=(2,))])
    data = {"m": Pair(keys, values, alpha=alpha)}
    state = schedule.run(schedule.init(None, jax.tree.map(lambda x: x[0], data)), data)
    for i in range(2):
        expected = recursive(keys[:, i], values[:, i], alpha[:, i], 0.1)
        np.testing.assert_allclose(schedule.read(state, "m")[i], expected, rtol=1e-3, atol=1e-4)
    assert schedule.read(state, "m", np.ones((2, 7, SIZE_IN), np.float32)).shape == (2, 7, SIZE_OUT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: init_least_squares(2, 1, 0.0), "ridge=0.0: expected a positive number"),
        (lambda: learn_least_squares(init_least_squares(2, 1), jnp.ones((3, 3)), jnp.ones((3, 1))), r"keys \(3, 3\)"),
        (lambda: learn_least_squares(init_least_squares(2, 1), jnp.ones((3, 2)), jnp.ones((3, 1)), 1.5), "retention"),
        (lambda: learn_least_squares(init_least_squares(2, 1), jnp.ones(2), jnp.ones(1)), r"keys \(2,\)"),
        (
            lambda: learn_least_squares(init_least_squares(2, 1), jnp.ones((3, 2)), jnp.ones((3, 1)), jnp.ones(2)),
            r"retention has shape \(2,\); expected a last axis of the 3 keys",
        ),
        (lambda: read_least_squares(init_least_squares(2, 1), jnp.ones((4, 3))), r"queries has shape \(4, 3\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
