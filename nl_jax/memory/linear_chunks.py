"""Chunks of a matrix memory as linear maps of its state, which do not depend on the state.

``recurrence.py`` solves a chunk when its state is known. Where nothing but the answers depends on the state, that
solution is linear in it. With T = (I + diag β (A' ∘ X Xᵀ))⁻¹ and the notation there, what each token writes is

    U = T F - T diag(β a') X W

so that both products with T, like the scores A ∘ Q Xᵀ, can be made for all chunks of a text at the same time. The state
then goes through the chunks by four products each (``ops/matrix_scan.py``).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.memory.channel_recurrence import ChannelDecay, decayed_products
from nl_jax.memory.recurrence import Decay
from nl_jax.ops import ChunkMaps, gram, inner_products, narrow_like, shift, solve_unit_lower


def linear_chunks(
    keys: Float[Array, "... C in"],
    forcings: Float[Array, "... C out"],
    beta: Float[Array, "... C"] | None,
    decay: Decay,
    queries: Float[Array, "... C in"],
) -> ChunkMaps:
    """The maps of chunks that ``solve_chunk`` would solve, and ``read_chunk`` and ``end_of_chunk`` use.

    Args:
      keys, forcings, beta: as for ``solve_chunk``; they do not depend on the state.
      decay: of the chunks' α; there is neither momentum nor a window.
      queries: which ``read_chunk`` answers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import chunk_decay, linear_chunks
      >>> keys, one = jnp.eye(2), jnp.ones(2)
      >>> maps = linear_chunks(keys, jnp.ones((2, 1)), one, chunk_decay(one, None), queries=keys)
      >>> maps.erase.shape, maps.write.shape, maps.keep.shape
      ((2, 2), (2, 1), (1, 2))
    """
    assert decay.own_forcing is None
    shape = jnp.broadcast_shapes(keys.shape[:-2], forcings.shape[:-2], decay.state_start.shape[:-1])

    def whole(u):
        return narrow_like(jnp.broadcast_to(u, (*shape, *u.shape[-2:])), keys)

    start = decay.state_start
    read = whole(start[..., None] * queries)
    scores = whole(decay.state * inner_products(queries, keys))
    left = whole(decay.state[..., -1, :, None] * keys)
    keep = jnp.broadcast_to(start[..., -1, None, None], (*shape, 1, keys.shape[-1]))
    if beta is None:
        return ChunkMaps(None, whole(forcings), read, scores, left, keep)
    written = beta[..., None] * (shift(decay.state, -2) * gram(keys))
    erased = (beta * shift(start, -1, 1.0))[..., None] * keys
    erased, forcings = (jnp.broadcast_to(u, (*shape, *u.shape[-2:])) for u in (erased, forcings))
    solved = solve_unit_lower(written, jnp.concatenate([erased, forcings], axis=-1))
    erase, write = jnp.split(solved, [keys.shape[-1]], axis=-1)
    return ChunkMaps(whole(erase), whole(write), read, scores, left, keep)


def linear_channel_chunks(
    keys: Float[Array, "... C in"],
    values: Float[Array, "... C out"],
    decay: ChannelDecay,
    queries: Float[Array, "... C in"],
) -> ChunkMaps:
    """The maps of chunks that ``solve_channel_chunk`` would solve without removal; arguments as there.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import channel_decay, linear_channel_chunks
      >>> keys, decay = jnp.eye(2), channel_decay(jnp.full((2, 2), 0.5))
      >>> maps = linear_channel_chunks(keys, jnp.ones((2, 1)), decay, queries=keys)
      >>> print(maps.erase, maps.keep)  # writes do not depend on the state, of which a quarter is kept
      None [[0.25 0.25]]
    """
    scores = narrow_like(decayed_products(queries, keys, decay), keys)
    read, left = (narrow_like(u, keys) for u in (queries * decay.from_start, keys * decay.to_end))
    return ChunkMaps(None, narrow_like(values, keys), read, scores, left, decay.from_start[..., -1:, :])
