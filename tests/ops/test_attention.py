"""Attention in blocks: against NumPy and against dot_product_attention, outputs and gradients, of any size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.ops import blockwise_attention

# queries, keys, window, empty keys, block size
CASES = [
    (5, 5, None, None, 128),
    (32, 32, None, None, 8),
    (37, 37, None, None, 8),  # no multiple of the block
    (37, 37, 37, None, 8),
    (37, 37, 5, None, 8),  # less than a block
    (37, 37, 1, None, 8),  # itself only
    (37, 37, 20, None, 8),
    (3, 41, None, None, 4),  # many keys at once
    (1, 9, 4, 5, 3),
    (20, 33, 13, 13, 6),
    (37, 50, 13, 4, 8),
    (37, 50, 13, -7, 8),  # none is empty
]


def inputs(queries, keys, scale=1.0, dtype=jnp.float32):
    """Query, key, value, and a cotangent of the output."""
    shapes = [(2, length, 3, 8) for length in (queries, keys, keys, queries)]
    arrays = (jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes))
    query, key, value, cotangent = arrays
    return query * scale, key, value, cotangent


def seen(queries, keys, window, empty):
    distance = np.arange(queries)[:, None] + keys - queries - np.arange(keys)
    return (distance >= 0) & (distance < (window or keys)) & (np.arange(keys) >= (empty or 0))


def dense(query, key, value, mask):
    """The definition, in NumPy and float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(axis=-1, keepdims=True), value)


def outputs_and_gradients(attention, *arrays):
    @jax.jit
    def both(query, key, value, cotangent):
        y, pull = jax.vjp(attention, query, key, value)
        return y, *pull(cotangent)

    return both(*arrays)


@pytest.mark.parametrize(("queries", "keys", "window", "empty", "block_size"), CASES)
def test_equals_numpy_and_dot_product_attention(queries, keys, window, empty, block_size):
    mask = seen(queries, keys, window, empty)
    arrays = inputs(queries, keys)

    def blockwise(query, key, value):
        first = None if empty is None else jnp.asarray(empty)
        return blockwise_attention(query, key, value, window=window, empty=first, block_size=block_size)

    def reference(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, mask=jnp.asarray(mask)[None, None])

    actual = outputs_and_gradients(blockwise, *arrays)
    np.testing.assert_allclose(actual[0], dense(*arrays[:3], mask), atol=1e-5)
    for a, e in zip(actual, outputs_and_gradients(reference, *arrays), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5)


@pytest.mark.parametrize("window", [None, 11])
def test_huge_scores(window):
    query, key, value, cotangent = inputs(37, 37, scale=1e4)
    y, *gradients = outputs_and_gradients(
        lambda *arrays: blockwise_attention(*arrays, window=window, block_size=8), query, key, value, cotangent
    )
    np.testing.assert_allclose(y, dense(query, key, value, seen(37, 37, window, None)), atol=1e-2)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_bfloat16():
    arrays = inputs(70, 70, dtype=jnp.bfloat16)
    narrow, wide = (
        outputs_and_gradients(lambda *arrays: blockwise_attention(*arrays, block_size=16), *arrays)
        for arrays in (arrays, [x.astype(jnp.float32) for x in arrays])
    )
    for a, e in zip(narrow, wide, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), e, atol=0.02 * float(jnp.max(jnp.abs(e))))


def test_what_is_not_seen_counts_for_nothing():
    query, key, value, _ = inputs(20, 30)

    @jax.jit
    def attend(key, value):
        return blockwise_attention(query, key, value, window=12, empty=jnp.asarray(4), block_size=8)

    y = attend(key, value)
    np.testing.assert_array_equal(attend(key.at[:, :4].set(1e6), value.at[:, :4].set(1e6)), y)
    later = attend(key.at[:, 20:].set(1e6), value.at[:, 20:].set(1e6))  # of queries 10 and after
    np.testing.assert_array_equal(later[:, :10], y[:, :10])
    before = attend(key.at[:, :10].set(1e6), value.at[:, :10].set(1e6))  # out of the window from query 11 on
    np.testing.assert_array_equal(before[:, 11:], y[:, 11:])


def test_memory_is_linear_in_the_number_of_tokens():
    def bytes_of(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        gradient = jax.grad(lambda *arrays: jnp.sum(jnp.sin(blockwise_attention(*arrays))), (0, 1, 2))
        return jax.jit(gradient).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(4096) < 2.1 * bytes_of(2048)


@pytest.mark.parametrize(("queries", "keys", "window", "empty"), [(37, 37, None, None), (20, 33, 13, 13), (1, 9, 4, 5)])
def test_groups_of_query_heads_share_keys_and_values(queries, keys, window, empty):
    query, key, value, cotangent = inputs(queries, keys)
    query, cotangent = (jnp.concatenate([x, x[:, ::-1]], axis=2) for x in (query, cotangent))  # 6 heads for 3

    def attend(query, key, value, repeats=1):
        key, value = (jnp.repeat(x, repeats, axis=2) for x in (key, value))
        first = None if empty is None else jnp.asarray(empty)
        return blockwise_attention(query, key, value, window=window, empty=first, block_size=8)

    grouped = outputs_and_gradients(attend, query, key, value, cotangent)
    repeated = outputs_and_gradients(lambda *arrays: attend(*arrays, repeats=2), query, key, value, cotangent)
    for a, e in zip(grouped, repeated, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5)
    pushed = jax.jit(
        lambda repeats, *pair: jax.jvp(functools.partial(attend, repeats=repeats), *pair)[1], static_argnums=0
    )
    tangents, expected = (pushed(repeats, (query, key, value), (query, value, key)) for repeats in (1, 2))
    np.testing.assert_allclose(tangents, expected, atol=1e-5)


def test_bad_arguments():
    query, key, value, _ = inputs(3, 3)
    with pytest.raises(ValueError, match="3 heads of keys; expected a divisor of the 2 heads of queries"):
        blockwise_attention(query[:, :, :2], key, value)
    for options, problem in [({"window": 0}, "window=0"), ({"block_size": 0}, "block_size=0")]:
        with pytest.raises(ValueError, match=f"{problem}: expected at least 1"):
            blockwise_attention(query, key, value, **options)
    for arguments, problem in [
        ((query[0], key, value), r"query has shape .* expected \[batch, time, heads, head_dim\]"),
        ((query, key, value[:, 1:]), "value has shape .* expected batch, time and heads of key"),
        ((query, key[..., 1:], value), "key has shape .* expected batch and head_dim of query"),
    ]:
        with pytest.raises(ValueError, match=problem):
            blockwise_attention(*arguments)
    with pytest.raises(ValueError, match="2 keys for 3 queries"):
        blockwise_attention(query, key[:, 1:], value[:, 1:])


def test_gradients_of_a_batch_of_calls():
    """`jax.vmap` over some of the arguments, of gradients and of tangents, is the loop."""
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 1, 9, 2, 4))

    def loss(query, key, value):
        return jnp.sum(jnp.sin(blockwise_attention(query, key, value, block_size=4)))

    @jax.jit
    def both(*arguments):
        return jax.grad(loss, (0, 1, 2))(*arguments), jax.jvp(loss, arguments, arguments)[1]

    found = jax.jit(jax.vmap(both, (0, None, 0)))(query, key[0], value)
    loop = [both(q, key[0], v) for q, v in zip(query, value, strict=True)]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(jax.tree.map(lambda *x: jnp.stack(x), *loop)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
