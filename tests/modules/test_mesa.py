"""Mesa against its definition token by token, its solver's accuracy, and its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.memory import init_least_squares, learn_least_squares, read_least_squares
from nl_jax.modules import mixer
from nl_jax.ops import solve_positive_definite

WIDTH, HEADS, SIZE = 8, 2, 4
apply = jax.jit(lambda module, x, state=None: module(x, state))


def make(**options):
    module = mixer("mesa", width=WIDTH, num_heads=HEADS, rngs=nnx.Rngs(0), **{"chunk_size": 4, **options})
    module = jax.tree.map(lambda p: p.astype(jnp.float64), module)
    module.ridge[...] = jax.random.normal(jax.random.key(5), (HEADS, SIZE))  # unlike in every channel
    return module


def answers(module, x):
    """Answers before the output's norm and projection, token by token: [time, heads, head_dim]."""
    p, _ = module.project(x, module.conv.init_state(1))
    key, value, query, eta, alpha = (np.moveaxis(np.asarray(u[0]), 0, 1) for u in p[:5])
    ridge = np.stack([np.diag(r) for r in 0.25 + np.log1p(np.exp(np.asarray(module.ridge[...])))])
    H, G = np.zeros((2, HEADS, SIZE, SIZE))
    found = []
    for k, v, q, e, a in zip(key, value, query, eta, alpha, strict=True):
        H = a[:, None, None] * H + e[:, None, None] * k[:, :, None] * k[:, None, :]
        G = a[:, None, None] * G + e[:, None, None] * v[:, :, None] * k[:, None, :]
        found.append(np.einsum("hvk,hk->hv", G, np.linalg.solve(H + ridge, q[..., None])[..., 0]))
    return np.stack(found)


@pytest.mark.parametrize("chunk", [1, 4, 16])
@pytest.mark.parametrize("alpha", [("sigmoid", 0.0), 1.0, 0.0])
def test_every_token_reads_the_solution_up_to_itself(chunk, alpha):
    with jax.enable_x64(True):
        module, x = make(chunk_size=chunk, alpha=alpha), jax.random.normal(jax.random.key(1), (1, 13, WIDTH))
        y = answers(module, x.astype(jnp.float64))
        y /= np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + 1e-6)
        expected = y.reshape(13, WIDTH) @ np.asarray(module.output.kernel[...])
        found, _ = apply(module, x.astype(jnp.float64))
        np.testing.assert_allclose(found[0], expected, rtol=1e-8, atol=1e-9)


def test_it_is_the_least_squares_memory():
    """With one ridge for all channels, and each pair multiplied by the root of its weight."""
    with jax.enable_x64(True):
        module, x = make(alpha=("sigmoid", 1.0)), jax.random.normal(jax.random.key(1), (1, 9, WIDTH), jnp.float64)
        module.ridge[...] = jnp.zeros((HEADS, SIZE))
        p, _ = module.project(x, module.conv.init_state(1))
        root = jnp.sqrt(p.eta)[..., None]
        state = init_least_squares(SIZE, SIZE, 0.25 + np.log(2.0), batch=(1, HEADS), dtype=jnp.float64)
        state = learn_least_squares(state, root * p.key, root * p.value, p.alpha)
        expected = np.asarray(read_least_squares(state, p.query[:, :, -1:]))[0, :, 0]
        np.testing.assert_allclose(answers(module, x)[-1], expected, rtol=1e-8)


@jax.jit
def solve_each(A, b):
    return solve_positive_definite(lambda p: jnp.einsum("nij,nj->ni", A, p), b, least=1.0, iterations=64)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    log_condition=st.sampled_from([0.0, 2.0, 6.0]),
    length=st.sampled_from([1e-35, 1.0, 1e35]),
)
def test_systems_are_solved(seed, log_condition, length):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((5, 8, 8)))[0]
    A = basis @ (np.logspace(0, log_condition, 8)[:, None] * np.swapaxes(basis, -1, -2))
    b = rng.standard_normal((5, 8))
    with jax.enable_x64(True):
        solved = solve_each(A, length * b)
        np.testing.assert_allclose(solved / length, np.linalg.solve(A, b[..., None])[..., 0], rtol=1e-7, atol=1e-9)
    solved = solve_each(np.float32(A), np.float32(length * b))
    assert np.all(np.isfinite(solved))


def test_thirty_iterations_solve_what_a_head_of_64_channels_sees():
    """Correlated keys with a common mean, 512 of them: the residual is below bfloat16's rounding error."""
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((512, 64)) * np.logspace(0, -1, 64) + 0.2
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    A = np.float32(0.5 * keys.T @ keys + np.eye(64))
    b = np.float32(keys[:32] + 0.1 * rng.standard_normal((32, 64)))
    x = solve_positive_definite(lambda p: p @ A, jnp.asarray(b), least=0.25, iterations=30)
    assert np.max(np.linalg.norm(x @ A - b, axis=1) / np.linalg.norm(b, axis=1)) < 2e-3


def test_the_gradient_is_that_of_the_exact_solution():
    """Against finite differences of the definition, solved directly, not of the iterations."""
    with jax.enable_x64(True):
        module, x = make(alpha=("sigmoid", 0.0)), jax.random.normal(jax.random.key(1), (1, 9, WIDTH), jnp.float64)
        rng = np.random.default_rng(0)
        along = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), (module, x))

        def moved(step):
            return jax.tree.map(lambda p, d: p + step * d, (module, x), along)

        def direct(step):
            module, x = moved(step)
            y = answers(module, x)
            y = y / np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + 1e-6) * np.asarray(module.output_norm.scale[...])
            return np.sum(np.sin(y.reshape(9, WIDTH) @ np.asarray(module.output.kernel[...])))

        def loss(module, x):
            return jnp.sum(jnp.sin(module(x)[0]))

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(module, x)
        found = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))
        assert float(found) == pytest.approx((direct(1e-6) - direct(-1e-6)) / 2e-6, rel=1e-6)
