"""The recurrence of a matrix memory whose retention is a vector over the channels of its keys, in closed form.

    W_t = diag(w_t) W_{t-1} - b_t (κ_tᵀ W_{t-1}) + k_t v_tᵀ        W [in, out]

Each token has a retention w in [0, 1], a key k and a value v. The memory's answer at κ is removed along b. RWKV-7 (Peng
et al., 2025) has b = a ∘ κ; gated linear attention (Yang et al., 2024) has no middle term. In ``recurrence.py`` all
channels have one retention, so that decays are scalars that multiply inner products.

Here decays stand inside of the inner products: what a token at s wrote along y is read along x at t as
Σ_c x_c y_c Π_{s<i≤t} w_ic. A chunk of C tokens is cut into blocks of about √C tokens. Within a block these sums are
computed one by one. Between blocks the product of w has three factors: from s to the end of its block, over the blocks
between, and from the start of t's block. The first two multiply y and the last one x, so that a matrix product sums
over channels. All factors are products of numbers in [0, 1], without divisions or logarithms, so w = 0 is exact.

For each token and head, one matrix of such sums takes about 3 √C d multiplications outside of matrix products, and C d
multiply-adds inside. Gated linear attention needs one such matrix, RWKV-7 four.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.ops import inner_products, matmul, narrow_like, outer_products, shift, solve_unit_lower

LEAST_BLOCK = 8  # tokens


class ChannelDecay(NamedTuple):
    """Products of the retention of each channel over the tokens of one chunk, padded to n blocks of B tokens.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import channel_decay
      >>> decay = channel_decay(jnp.array([[0.5, 1.0], [0.5, 1.0]]))
      >>> print(decay.to_end)  # what the second token leaves of both writes, in each channel
      [[0.5 1. ]
       [1.  1. ]]
    """

    inside: Float[Array, "... n B B in"]  # Π_{s<i≤t} w_i at [t, s] of each block; 0 above the diagonal
    from_block: Float[Array, "... n B in"]  # from the start of its block to t
    to_block: Float[Array, "... n nB in"] | None  # from s to the start of each later block, else 0; None with one block
    from_start: Float[Array, "... C in"]  # from the start of the chunk to t
    to_end: Float[Array, "... C in"]  # from s to the end of the chunk


def block_size(size: int) -> int:
    """Tokens of a block in a chunk of ``size`` tokens."""
    return min(size, max(LEAST_BLOCK, math.isqrt(size - 1) + 1))


def channel_decay(retention: Float[Array, "... C in"]) -> ChannelDecay:
    """The decay of a chunk; padding has the retention 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import channel_decay
      >>> decay = channel_decay(jnp.array([[0.5, 1.0], [0.5, 1.0]]))  # the second channel forgets nothing
      >>> print(decay.from_start)
      [[0.5  1.  ]
       [0.25 1.  ]]
    """
    *leading, size, width = retention.shape
    block = block_size(size)
    count = -(-size // block)
    blocks = _padded(retention, count * block, 1.0).reshape(*leading, count, block, width)
    inside = _products(blocks)
    from_block = blocks[..., :1, :] * inside[..., :, 0, :]
    to_block_end = inside[..., -1, :, :]
    if count == 1:
        return ChannelDecay(inside, from_block, None, from_block[..., 0, :, :], to_block_end[..., 0, :, :])
    total = from_block[..., -1, :]  # of each block
    between = _products(total)
    begun = shift(total[..., :1, :] * between[..., :, 0, :], -2, 1.0)  # before each block

    def flat(u):
        return u.reshape(*u.shape[:-3], count * block, width)

    from_start = flat(begun[..., None, :] * from_block)[..., :size, :]
    to_end = flat(between[..., -1, :, None, :] * to_block_end)[..., :size, :]
    to_block = flat(shift(between, -3)[..., None, :] * to_block_end[..., None, :, :, :])
    return ChannelDecay(inside, from_block, to_block, from_start, to_end)


def _products(rate: Float[Array, "... C in"]) -> Float[Array, "... C C in"]:
    """``Π_{s<i≤t} rate_i`` at [t, s] for each channel, row by row."""
    row = jnp.zeros_like(rate).at[..., 0, :].set(1.0)
    rows = [row]
    for t in range(1, rate.shape[-2]):
        row = (rate[..., t, None, :] * row).at[..., t, :].set(1.0)
        rows.append(row)
    return jnp.stack(rows, axis=-3)


def _padded(u: Float[Array, "... C in"], length: int, value: float = 0.0) -> Float[Array, "... length in"]:
    return jnp.pad(u, [(0, 0)] * (u.ndim - 2) + [(0, length - u.shape[-2]), (0, 0)], constant_values=value)


def decayed_products(
    x: Float[Array, "... C in"], y: Float[Array, "... C in"], decay: ChannelDecay
) -> Float[Array, "... C C"]:
    """``Σ_c x_tc y_sc Π_{s<i≤t} w_ic`` at [t, s], and zeros above the diagonal."""
    *leading, size, width = x.shape
    count, block = decay.from_block.shape[-3:-1]
    rows, columns = (_padded(u, count * block).reshape(*leading, count, block, width) for u in (x, y))
    products = jnp.sum(rows[..., :, None, :] * columns[..., None, :, :] * decay.inside, axis=-1)
    if decay.to_block is None:
        return products[..., 0, :, :]
    own = jnp.eye(count, dtype=products.dtype)[:, None, :, None]
    products = own * products[..., :, :, None, :]  # [..., block of t, t, block of s, s]
    left = narrow_like(rows * decay.from_block, x)
    right = narrow_like(_padded(y, count * block)[..., None, :, :] * decay.to_block, y)
    products = products.reshape(*leading, count * block, count * block)
    products = products + inner_products(left, right).reshape(products.shape)
    return products[..., :size, :size]


class ChannelChunk(NamedTuple):
    """One solved chunk, from which the memory is read at any token and carried to the next chunk.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import channel_decay, end_of_channel_chunk, solve_channel_chunk
      >>> decay = channel_decay(jnp.array([[1.0, 1.0], [1.0, 0.5]]))
      >>> chunk = solve_channel_chunk(jnp.ones((2, 1)), jnp.eye(2), jnp.zeros((2, 1)), None, decay)
      >>> print(chunk.weights[:, 0], end_of_channel_chunk(chunk)[:, 0])  # before the chunk, after it
      [1. 1.] [1.  0.5]
    """

    weights: Float[Array, "... in out"]  # W at the chunk's start
    keys: Float[Array, "... C in"]
    values: Float[Array, "... C out"]
    removal: Float[Array, "... C in"] | None  # b; None where nothing is removed
    removed: Float[Array, "... C out"] | None  # κᵀ W before each token
    decay: ChannelDecay


def solve_channel_chunk(
    weights: Float[Array, "... in out"],
    keys: Float[Array, "... C in"],
    values: Float[Array, "... C out"],
    removal: tuple[Float[Array, "... C in"], Float[Array, "... C in"]] | None,
    decay: ChannelDecay,
) -> ChannelChunk:
    """Solves one chunk for what is removed at each of its tokens.

    Args:
      weights: W at the chunk's start.
      keys, values: k and v; padding has the value 0.
      removal: κ and b, where padding has b = 0; None for a memory that only decays.
      decay: of this chunk.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import channel_decay, read_channel_chunk, solve_channel_chunk
      >>> decay = channel_decay(jnp.array([[1.0, 1.0], [0.5, 1.0]]))
      >>> chunk = solve_channel_chunk(jnp.zeros((2, 1)), jnp.eye(2), jnp.ones((2, 1)), None, decay)
      >>> print(read_channel_chunk(chunk, jnp.eye(2)[::-1])[:, 0])  # at token 2, half of what token 1 wrote
      [0.  0.5]
    """
    values = narrow_like(values, keys)
    if removal is None:
        return ChannelChunk(weights, keys, values, None, None, decay)
    kappa, removal_keys = removal
    later = _padded(kappa[..., 1:, :], kappa.shape[-2])  # at t - 1: the decay of what t reads ends before t
    answers = matmul(narrow_like(kappa * shift(decay.from_start, -2, 1.0), kappa), weights)
    answers = answers + matmul(shift(decayed_products(later, keys, decay), -2), values)
    removed = solve_unit_lower(shift(decayed_products(later, removal_keys, decay), -2), answers)
    return ChannelChunk(weights, keys, values, removal_keys, narrow_like(removed, keys), decay)


def read_channel_chunk(chunk: ChannelChunk, queries: Float[Array, "... C in"]) -> Float[Array, "... C out"]:
    """Answers every query t by W_t, the state updated up to and including token t.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import channel_decay, read_channel_chunk, solve_channel_chunk
      >>> decay = channel_decay(jnp.ones((2, 2)))
      >>> chunk = solve_channel_chunk(jnp.zeros((2, 1)), jnp.eye(2), jnp.array([[2.0], [3.0]]), None, decay)
      >>> print(read_channel_chunk(chunk, jnp.ones((2, 2)))[:, 0])
      [2. 5.]
    """
    decay = chunk.decay
    out = matmul(narrow_like(queries * decay.from_start, queries), chunk.weights)
    out = out + matmul(decayed_products(queries, chunk.keys, decay), chunk.values)
    if chunk.removal is None or chunk.removed is None:
        return out
    return out - matmul(decayed_products(queries, chunk.removal, decay), chunk.removed)


def end_of_channel_chunk(chunk: ChannelChunk) -> Float[Array, "... in out"]:
    """W after the chunk's last token.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import channel_decay, end_of_channel_chunk, solve_channel_chunk
      >>> decay = channel_decay(jnp.array([[1.0, 1.0], [0.5, 1.0]]))
      >>> chunk = solve_channel_chunk(jnp.zeros((2, 1)), jnp.eye(2), jnp.ones((2, 1)), None, decay)
      >>> print(end_of_channel_chunk(chunk)[:, 0])
      [0.5 1. ]
    """
    to_end, keys = chunk.decay.to_end, chunk.keys
    weights = chunk.decay.from_start[..., -1, :, None] * chunk.weights
    weights = weights + outer_products(narrow_like(keys * to_end, keys), chunk.values)
    if chunk.removal is None or chunk.removed is None:
        return weights
    return weights - outer_products(narrow_like(chunk.removal * to_end, keys), chunk.removed)
