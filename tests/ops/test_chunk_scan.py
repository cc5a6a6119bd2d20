"""The kernel that runs any chunk's program gives what a loop over chunks does, by Pallas' interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.costs import count_flops
from nl_jax.ops import chunk_scan

SIZE, WIDTH = 4, 3  # tokens of a chunk, size of a key


def step(read_only, state, tokens):
    """A memory that is not linear in its state: a matrix, a counter beside it, keys that the matrix makes."""
    matrix, count = state
    keys = jnp.tanh(tokens["x"] @ (matrix + read_only["w"]) * tokens["rate"][..., None])
    answers = keys @ matrix + count[..., None, None] + read_only["bias"][..., None, :]
    matrix = 0.9 * matrix + 0.1 * jnp.swapaxes(keys, -1, -2) @ (tokens["x"] - answers)
    return answers, (matrix, count + jnp.sum(tokens["rate"], -1))


def limit(cotangents):
    return jax.tree.map(lambda u: jnp.clip(u, -0.5, 0.5), cotangents)


@jax.custom_vjp
def limited(state):
    return state


limited.defvjp(lambda state: (state, None), lambda _, d: (limit(d),))


def loop(read_only, state, tokens):
    """The reference: chunk after chunk."""
    answers = []
    for i in range(tokens["x"].shape[2]):
        y, state = step(read_only, limited(state), jax.tree.map(lambda u, i=i: u[:, :, i], tokens))
        answers.append(y)
    return jnp.stack(answers, 2), state


def case(batch, heads, chunks, seed):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=(batch, heads, *shape)))

    read_only = {"w": normal(WIDTH, WIDTH), "bias": normal(WIDTH)}
    tokens = {"x": normal(chunks, SIZE, WIDTH), "rate": normal(chunks, SIZE)}
    return read_only, (normal(WIDTH, WIDTH), normal()), tokens


def value_and_gradients(function, *arguments):
    def loss(*arguments):
        found = function(*arguments)
        return sum(jnp.sum(jnp.sin(u)) for u in jax.tree.leaves(found)), found

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arguments)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(0, 9))
def test_values_and_gradients_are_those_of_a_loop(batch, heads, chunks, seed):
    with jax.enable_x64(True):
        given = case(batch, heads, chunks, seed)
        expected = value_and_gradients(loop, *given)
        found = value_and_gradients(functools.partial(chunk_scan, step, limit, "interpret"), *given)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)


def test_operations_are_counted_chunk_by_chunk():
    given = case(2, 3, 4, 0)
    products = 3 * 2 * SIZE * WIDTH * WIDTH  # of a chunk: keys, answers, writes
    found = count_flops(functools.partial(chunk_scan, step, limit, "interpret"), *given)
    assert found.matrix == 2 * 3 * 4 * products
