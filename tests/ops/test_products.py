"""Products with weights and with blocks of columns against their plain formulas; decay matrices on other chips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax import ops


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size_in", "size_out"), [(3, 5), (5, 3)])
def test_weights_may_be_on_either_side(size_in, size_out):
    weights, x, matrix, y = normal(2, 4), normal(2, 4, size_in), normal(2, size_in, size_out), normal(2, 4, size_out)
    close(ops.weighted_product(weights, x, matrix), weights[..., None] * (x @ matrix))
    expected = jnp.einsum("bc,bci,bco->bio", weights, x, y)
    close(ops.weighted_outer_products(weights, x, y), expected)


def test_gram():
    x = normal(2, 4, 3)
    close(ops.gram(x), jnp.einsum("bci,bdi->bcd", x, x))


@pytest.mark.parametrize("of_blocks", [1, 3])
def test_blocks_of_columns(of_blocks):
    x, weights = normal(2, 4, 6), normal(2, of_blocks, 4)
    blocks = jnp.stack(jnp.split(x, 3, axis=-1), axis=1)  # [2, 3, 4, 2]
    close(ops.block_squared_lengths(x, 3), jnp.sum(jnp.square(blocks), axis=-1))
    scaled = jnp.concatenate(list(jnp.moveaxis(weights[..., None] * blocks, 1, 0)), axis=-1)
    close(ops.scale_blocks(weights, x, 3), scaled)


def test_shift():
    x = normal(2, 3)
    close(ops.shift(x, 0), jnp.stack([jnp.zeros(3), x[0]]))
    close(ops.shift(x, -1, 1.0), jnp.concatenate([jnp.ones((2, 1)), x[:, :2]], axis=1))


def test_a_decay_matrix_is_multiplied_by_the_identity_on_a_cpu_only():
    """Also where a program for another chip is compiled on a machine that has none."""
    traced = jax.jit(ops.decay_matrix).trace(jnp.full(16, 0.9))
    assert "dot_general" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "dot_general" not in traced.lower(lowering_platforms=("tpu",)).as_text()
