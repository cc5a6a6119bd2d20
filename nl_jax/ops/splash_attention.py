"""Causal attention by JAX's own kernel for TPUs (splash attention), which keeps a head's scores on the chip."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

BLOCK_SIZES = (512, 256, 128)  # queries, and keys, of a tile: the largest that divides the text's length


def fits_splash(query: Array, key: Array, value: Array) -> bool:
    """Whether the kernel can answer queries [batch, time, heads, head_dim] by keys and values of the same tokens.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import fits_splash
      >>> short, long = jnp.ones((1, 100, 2, 64)), jnp.ones((1, 256, 2, 64))
      >>> fits_splash(short, short, short), fits_splash(long, long, long)  # the kernel reads whole blocks of tokens
      (False, True)
    """
    return (
        query.shape == key.shape == value.shape
        and query.shape[1] > 0
        and query.shape[1] % BLOCK_SIZES[-1] == 0
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (jnp.bfloat16, jnp.float32)
    )


def splash_attention(
    query: Float[Array, "batch heads time head_dim"],
    key: Float[Array, "batch heads time head_dim"],
    value: Float[Array, "batch heads time head_dim"],
    *,
    window: int,
    interpret: bool = False,
) -> Float[Array, "batch heads time head_dim"]:
    """As `blockwise_attention` of transposed arrays, up to rounding, for what `fits_splash`.

    It has gradients in reverse mode only, and none of second order.

    Args:
      query, key, value: of the same tokens.
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
    size = next(size for size in BLOCK_SIZES if time % size == 0)
    mask = (
        masks.CausalMask((time, time)) if window >= time else masks.LocalMask((time, time), (window - 1, 0), offset=0)
    )
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{name}": size for name in names}
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernel.BlockSizes(**blocks),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    return jax.vmap(attend)(query * head_dim**-0.5, key, value)
