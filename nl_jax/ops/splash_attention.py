"""Causal attention by JAX's own kernel for TPUs (splash attention), which keeps a head's scores on the chip."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

BLOCK_SIZES = (512, 256, 128)  # queries, or keys, of a tile: the largest that divides their number


def fits_splash(query: Array, key: Array, value: Array) -> bool:
    """Whether the kernel can answer queries [batch, time, heads, head_dim] by keys and values [batch, keys, ...].

    There must be at least as many keys as queries, and as many heads of keys as of queries.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import fits_splash
      >>> short, long = jnp.ones((1, 100, 2, 64)), jnp.ones((1, 256, 2, 64))
      >>> fits_splash(short, short, short), fits_splash(long, long, long)  # the kernel reads whole blocks of tokens
      (False, True)
    """
    (batch, time, *heads), keys = query.shape, key.shape[1]
    return (
        key.shape == value.shape == (batch, keys, *heads)
        and 0 < time <= keys
        and time % BLOCK_SIZES[-1] == keys % BLOCK_SIZES[-1] == 0
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (jnp.bfloat16, jnp.float32)
    )


def splash_attention(
    query: Float[Array, "batch heads time head_dim"],
    key: Float[Array, "batch heads keys head_dim"],
    value: Float[Array, "batch heads keys head_dim"],
    empty: Int[Array, "batch heads"] | None = None,
    *,
    window: int,
    interpret: bool = False,
) -> Float[Array, "batch heads time head_dim"]:
    """As `blockwise_attention` of transposed arrays, up to rounding, for what `fits_splash`.

    It has gradients in reverse mode only, and none of second order.

    Args:
      query: of the last ``time`` tokens.
      key, value: of all tokens, so that those of the queries are the last.
      empty: how many keys at the front hold no token; None for none. All sequences and heads have the same number. It
        has this shape because `nl_jax.parallel.kernels.over_heads` gives each device its sequences and heads of every
        argument. The kernel reads these keys too, and masks them.
      window: tokens that each sees, itself included.
      interpret: whether Pallas' interpreter runs it, on any device.

    Examples:
      >>> import functools, jax, jax.numpy as jnp
      >>> from nl_jax.ops import splash_attention
      >>> q = jnp.ones((1, 2, 256, 64))  # batch, heads, time, head_dim
      >>> jax.eval_shape(functools.partial(splash_attention, window=128, interpret=True), q, q, q).shape
      (1, 2, 256, 64)
    """
    _, heads, time, head_dim = query.shape
    keys = key.shape[2]
    offset = keys - time
    mask = (
        masks.CausalMask((time, keys), offset)
        if window >= keys
        else masks.LocalMask((time, keys), (window - 1, 0), offset)
    )
    of_query, of_keys = (next(size for size in BLOCK_SIZES if n % size == 0) for n in (time, keys))
    blocks: dict[str, Any] = {f"block_{name}": of_query for name in ("q", "q_dkv", "q_dq")}
    blocks |= {f"block_{name}": of_keys for name in ("kv", "kv_compute", "kv_dkv", "kv_dkv_compute", "kv_dq")}
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernel.BlockSizes(**blocks),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    query = query * head_dim**-0.5
    if empty is None:
        return jax.vmap(attend)(query, key, value)
    segments = kernel.SegmentIds(jnp.ones(time, jnp.int32), (jnp.arange(keys) >= empty[0, 0]).astype(jnp.int32))
    return jax.vmap(attend, in_axes=(0, 0, 0, None))(query, key, value, segments)
