"""Exact causal softmax attention in blocks, in memory linear in the number of tokens, forward and backward.

Scores are computed a tile of keys × queries at a time with running maxima and sums (Milakov & Gimelshein, 2018), and
again in the backward pass (FlashAttention: Dao et al., 2022). A ``lax.scan`` runs over the list of the tiles in which a
query sees a key at all: causality halves the cost, and a window makes it linear in the number of tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nl_jax.ops.transposable import apply_linear

BLOCK_SIZE = 128  # queries, and keys, of a tile


def blockwise_attention(
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    value: Float[Array, "batch keys kv_heads head_dim"],
    *,
    window: int | None = None,
    empty: Int[Array, ""] | None = None,
    block_size: int = BLOCK_SIZE,
) -> Float[Array, "batch time heads head_dim"]:
    """Softmax attention of each token to itself and the tokens before it, scores scaled by ``head_dim ** -0.5``.

    Equals `jax.nn.dot_product_attention` under the same mask. Derivatives in forward and in reverse mode are taken in
    blocks, too; those of second order may keep all tiles. Scores, softmax and sums are in float32 at least, the factors
    of products in the type of the inputs.

    Args:
      query: of the last ``time`` tokens. Heads in the order of keys' heads: each of these serves ``heads // kv_heads``
        queries' heads that follow each other (grouped-query attention).
      key: of all tokens, so that those of the queries are the last; ``keys >= time``.
      value: likewise.
      window: tokens that each sees, itself included (Eq. 63 of arXiv 2512.24695); None for all (Eq. 62).
      empty: how many keys at the front hold no token; None for none.
      block_size: a head's tile has at most its square of scores.

    Raises:
      ValueError: for shapes that do not fit, fewer keys than queries, a number of heads that keys' heads do not
        divide, or a window or block size below 1.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nl_jax.ops import blockwise_attention
      >>> x = jax.random.normal(jax.random.key(0), (1, 6, 2, 4))  # [batch, time, heads, head_dim]
      >>> one = blockwise_attention(x, x, x)
      >>> other = jax.nn.dot_product_attention(x, x, x, is_causal=True)
      >>> bool(jnp.allclose(one, other, atol=1e-5))
      True
    """
    _check_shapes(query, key, value)
    time, keys = query.shape[1], key.shape[1]
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"{key.shape[2]} heads of keys; expected a divisor of the {query.shape[2]} heads of queries")
    if keys < time:
        raise ValueError(f"{keys} keys for {time} queries: expected at least one for each")
    window = keys if window is None else window
    for name, size in (("window", window), ("block_size", block_size)):
        if size < 1:
            raise ValueError(f"{name}={size}: expected at least 1")
    if time == 0:
        return jnp.zeros(query.shape, value.dtype)
    return _attention(query, key, value, empty, window, block_size)[0]


def _check_shapes(query: Array, key: Array, value: Array) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {x.shape}; expected [batch, time, heads, head_dim]")
    if value.shape[:3] != key.shape[:3]:  # the rest would be read past the end of the values, without an error
        raise ValueError(f"value has shape {value.shape}; expected batch, time and heads of key, {key.shape}")
    if (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3]):
        raise ValueError(f"key has shape {key.shape}; expected batch and head_dim of query, {query.shape}")


class _Tiling(NamedTuple):
    """How queries and keys are cut into blocks, and the pairs of blocks [count, 2] whose tile is needed."""

    query_size: int
    key_size: int
    offset: int  # the first query is that of this key's token
    window: int
    groups: int  # queries' heads that share a head of keys
    cut: np.ndarray  # tiles of which some queries see a part
    whole: np.ndarray  # tiles that all their queries see whole

    def mask(self, i: Array, j: Array, empty: Array | None) -> Array:
        """What query block i sees of key block j, [key_size, groups * query_size]."""
        key = j * self.key_size + jnp.arange(self.key_size)[:, None]
        distance = self.offset + i * self.query_size + jnp.arange(self.query_size) - key
        seen = (distance >= 0) & (distance < self.window)
        return jnp.tile(seen if empty is None else seen & (key >= empty), (1, self.groups))


def _tiling(query: Array, key: Array, window: int, block_size: int) -> _Tiling:
    time, keys, groups = query.shape[1], key.shape[1], query.shape[2] // key.shape[2]

    def even(length: int, limit: int) -> int:
        return -(-length // -(-length // limit))

    query_size = even(time, block_size)
    key_size = even(keys, block_size**2 // query_size)  # few queries take many keys at once
    offset = keys - time
    first = offset + np.arange(0, time, query_size)[:, None]  # tokens of a block's first and last query
    last = np.minimum(first + query_size, keys) - 1
    start = np.arange(0, keys, key_size)
    end = start + key_size - 1
    needed = (start <= last) & (end > first - window)
    whole = (end <= first) & (start > last - window)
    return _Tiling(
        query_size, key_size, offset, window, groups, np.argwhere(needed & ~whole), np.argwhere(needed & whole)
    )


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _attention(query, key, value, empty, window, block_size):
    """Outputs, and the logarithm of each query's sum of exponentials, [blocks, batch, kv_heads, groups * query_size].

    In a block the queries of a group of heads stand one after the other, so that they share products with keys.
    """
    time, head_dim = query.shape[1], query.shape[-1]
    tiling = _tiling(query, key, window, block_size)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    lowest = _lowest(wide)
    queries, keys, values = _cut(tiling, query * head_dim**-0.5, key, value)

    def tile(masked, carry, pair):
        outputs, maxima, sums = carry
        i, j = pair
        # keys are the rows: on CPU a maximum over the slow axis is several times faster
        scores = _product("bhkd,bhqd->bhkq", _at(keys, j), _at(queries, i), wide)
        if masked:
            scores = jnp.where(tiling.mask(i, j, empty), scores, lowest)
        before = _at(maxima, i)
        maximum = jnp.maximum(before, jnp.max(scores, axis=-2))
        weights = jnp.exp(scores - maximum[..., None, :])
        rescale = jnp.exp(before - maximum)  # 0 at a query's first seen key: drops what tiles without one have left
        y = _product("bhkd,bhkq->bhdq", _at(values, j), weights.astype(value.dtype), wide)
        y = _at(outputs, i) * rescale[..., None, :] + y
        total = _at(sums, i) * rescale + jnp.sum(weights, axis=-2)
        return (_put(outputs, y, i), _put(maxima, maximum, i), _put(sums, total, i)), None

    rows = queries.shape[:4]
    carry = (jnp.zeros((*rows[:3], head_dim, rows[3]), wide), jnp.full(rows, lowest), jnp.zeros(rows, wide))
    outputs, maxima, sums = _run(tile, carry, tiling, empty)
    y = _join(jnp.swapaxes(outputs / sums[..., None, :], -1, -2), time, tiling.groups).astype(value.dtype)
    return y, maxima + jnp.log(sums)


@_attention.defjvp
def _attention_jvp(window, block_size, primals, tangents):
    query, key, value, empty = primals
    y, log_sums = _attention(query, key, value, empty, window, block_size)
    saved = query, key, value, empty, y, log_sums
    tiling = _tiling(query, key, window, block_size)
    change = apply_linear(partial(_tangent, tiling), partial(_cotangent, tiling), saved, tuple(tangents[:3]))
    return (y, log_sums), change


def _tangent(tiling, saved, tangents):
    """Change of outputs and log-sums with that of query, key and value."""
    query, key, value, empty, y, log_sums = saved
    time, wide, scale = query.shape[1], log_sums.dtype, query.shape[-1] ** -0.5
    queries, keys, values = _cut(tiling, query * scale, key, value)
    d_queries, d_keys, d_values = _cut(tiling, tangents[0] * scale, *tangents[1:])

    def tile(masked, carry, pair):
        outputs, means = carry
        i, j = pair
        q, k, v = _at(queries, i), _at(keys, j), _at(values, j)
        weights = _weights(tiling, q, k, _at(log_sums, i), (i, j, empty) if masked else None)
        d_scores = _product("bhkd,bhqd->bhkq", k, _at(d_queries, i), wide)
        d_scores = weights * (d_scores + _product("bhkd,bhqd->bhkq", _at(d_keys, j), q, wide))
        dy = _product("bhkd,bhkq->bhdq", v, d_scores.astype(value.dtype), wide)
        dy = dy + _product("bhkd,bhkq->bhdq", _at(d_values, j), weights.astype(value.dtype), wide)
        outputs = _put(outputs, _at(outputs, i) + dy, i)
        return (outputs, _put(means, _at(means, i) + jnp.sum(d_scores, axis=-2), i)), None

    shape = (*queries.shape[:3], query.shape[-1], queries.shape[3])
    outputs, means = _run(tile, (jnp.zeros(shape, wide), jnp.zeros_like(log_sums)), tiling, empty)
    dy, mean = (_join(u, time, tiling.groups) for u in (jnp.swapaxes(outputs, -1, -2), means[..., None]))
    dy = dy - mean * y.astype(wide)
    return dy.astype(y.dtype), means


def _cotangent(tiling, saved, cotangents):
    """Its transpose: cotangents of query, key and value from those of outputs and log-sums."""
    query, key, value, empty, y, log_sums = saved
    cotangent, of_log_sums = cotangents
    time, wide, scale = query.shape[1], log_sums.dtype, query.shape[-1] ** -0.5
    queries, keys, values = _cut(tiling, query * scale, key, value)
    cotangents = _blocks(cotangent, tiling.query_size, tiling.groups)
    # Σ_s p_s (dL/dp_s), which the softmax takes away, is the product of output and cotangent
    mean = jnp.sum(y.astype(wide) * cotangent.astype(wide), axis=-1, keepdims=True)
    means = jnp.squeeze(_blocks(mean, tiling.query_size, tiling.groups), -1) - of_log_sums

    def tile(masked, carry, pair):
        d_queries, d_keys, d_values = carry
        i, j = pair
        q, k, v, dy = _at(queries, i), _at(keys, j), _at(values, j), _at(cotangents, i)
        weights = _weights(tiling, q, k, _at(log_sums, i), (i, j, empty) if masked else None)
        d_weights = _product("bhkd,bhqd->bhkq", v, dy, wide)
        d_scores = (weights * (d_weights - _at(means, i)[..., None, :])).astype(query.dtype)
        dq = _product("bhkd,bhkq->bhdq", k, d_scores, wide)
        dk = _product("bhkq,bhqd->bhkd", d_scores, q, wide)
        dv = _product("bhkq,bhqd->bhkd", weights.astype(value.dtype), dy, wide)
        d_queries = _put(d_queries, _at(d_queries, i) + dq, i)
        d_keys, d_values = _put(d_keys, _at(d_keys, j) + dk, j), _put(d_values, _at(d_values, j) + dv, j)
        return (d_queries, d_keys, d_values), None

    shapes = (*queries.shape[:3], query.shape[-1], queries.shape[3]), keys.shape, keys.shape
    d_queries, d_keys, d_values = _run(tile, tuple(jnp.zeros(shape, wide) for shape in shapes), tiling, empty)
    dq = _join(jnp.swapaxes(d_queries, -1, -2), time, tiling.groups) * scale
    dk, dv = (_join(blocks, key.shape[1]) for blocks in (d_keys, d_values))
    return dq.astype(query.dtype), dk.astype(key.dtype), dv.astype(value.dtype)


def _weights(tiling, q, k, log_sums, masked):
    """What a tile's queries give its keys, [..., key_size, query_size]; ``masked`` says which tile, where it is cut."""
    scores = _product("bhkd,bhqd->bhkq", k, q, log_sums.dtype)
    if masked is not None:
        scores = jnp.where(tiling.mask(*masked), scores, _lowest(log_sums.dtype))
    return jnp.exp(scores - log_sums[..., None, :])


def _run(tile: Callable[..., Any], carry: Any, tiling: _Tiling, empty: Array | None) -> Any:
    """``carry, _ = tile(masked, carry, (i, j))`` for every needed tile; those without a mask have their own loop."""
    for pairs, masked in ((tiling.cut, True), (tiling.whole, empty is not None)):
        if len(pairs):
            i, j = pairs.T
            if empty is not None:  # a scan over layers would compute ahead, and keep, all masks of constant pairs
                i, j = i + 0 * empty, j + 0 * empty
            carry, _ = jax.lax.scan(partial(tile, masked), carry, (i, j))
    return carry


def _lowest(dtype: Any) -> Array:
    """Stands for -inf: exp(lowest - x) is 0 for any score x, and exp(lowest - lowest) is no NaN."""
    return jnp.asarray(-0.7 * jnp.finfo(dtype).max, dtype)


def _product(subscripts: str, a: Array, b: Array, dtype: Any) -> Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=dtype)


def _cut(tiling, query, key, value):
    queries = _blocks(query, tiling.query_size, tiling.groups)
    return queries, _blocks(key, tiling.key_size), _blocks(value, tiling.key_size)


def _blocks(
    x: Float[Array, "batch time heads head_dim"], size: int, groups: int = 1
) -> Float[Array, "count batch kv_heads rows head_dim"]:
    """Cut along time, zeros behind the end; a block is one piece of memory, with ``groups * size`` rows a head."""
    batch, time, heads, head_dim = x.shape
    count = -(-time // size)
    x = jnp.pad(x, ((0, 0), (0, count * size - time), (0, 0), (0, 0)))
    x = jnp.transpose(x.reshape(batch, count, size, heads // groups, groups, head_dim), (1, 0, 3, 4, 2, 5))
    return x.reshape(count, batch, heads // groups, groups * size, head_dim)


def _join(
    x: Float[Array, "count batch kv_heads rows head_dim"], time: int, groups: int = 1
) -> Float[Array, "batch time heads head_dim"]:
    count, batch, heads, rows, head_dim = x.shape
    x = x.reshape(count, batch, heads, groups, rows // groups, head_dim)
    x = jnp.transpose(x, (1, 0, 4, 2, 3, 5))
    return x.reshape(batch, count * rows // groups, heads * groups, head_dim)[:, :time]


def _at(blocks: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(blocks, index, keepdims=False)


def _put(blocks: Array, block: Array, index: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(blocks, block, index, 0)
