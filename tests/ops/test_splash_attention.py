"""JAX's splash attention, by Pallas' interpreter: the same as attention in blocks, for all that it says it fits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.ops import blockwise_attention, fits_splash, splash_attention

BATCH, HEADS, HEAD_DIM = 2, 2, 8


def outputs_and_gradients(attention, *arrays):
    y, pull = jax.vjp(attention, *arrays)
    return y, *pull(jnp.cos(y))


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(blocks=st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)]), data=st.data())
def test_it_is_attention_in_blocks(blocks, data):
    """Outputs and gradients; queries of any part of a text, any window, any number of keys without a token."""
    time, keys = (128 * count for count in blocks)
    window = data.draw(st.integers(1, keys + 1))
    empty = data.draw(st.none() | st.integers(0, keys - time))
    shapes = [(BATCH, length, HEADS, HEAD_DIM) for length in (time, keys, keys)]
    arrays = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    assert fits_splash(*arrays)
    many = None if empty is None else jnp.full((BATCH, HEADS), empty)

    def by_kernel(*arrays):
        heads_first = (jnp.swapaxes(u, 1, 2) for u in arrays)
        return jnp.swapaxes(splash_attention(*heads_first, many, window=window, interpret=True), 1, 2)

    few = None if empty is None else jnp.asarray(empty)
    expected = outputs_and_gradients(functools.partial(blockwise_attention, window=window, empty=few), *arrays)
    for a, b in zip(outputs_and_gradients(by_kernel, *arrays), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("queries", "keys", "heads_of_keys", "dtype", "fits"),
    [
        (128, 128, 2, jnp.bfloat16, True),
        (128, 384, 2, jnp.float32, True),
        (256, 128, 2, jnp.float32, False),  # fewer keys than queries
        (1, 129, 2, jnp.float32, False),
        (128, 200, 2, jnp.float32, False),
        (0, 128, 2, jnp.float32, False),
        (128, 128, 1, jnp.float32, False),
        (128, 128, 2, jnp.float16, False),
    ],
)
def test_what_fits(queries, keys, heads_of_keys, dtype, fits):
    query, key = jnp.ones((1, queries, 2, 8), dtype), jnp.ones((1, keys, heads_of_keys, 8), dtype)
    assert fits_splash(query, key, key) == fits
