"""Causal attention by the program that suits the device: cuDNN's fused one on an NVIDIA GPU, else one in blocks."""

import re

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nl_jax.ops.attention import blockwise_attention

LARGEST_HEAD = 128  # channels that cuDNN takes on every GPU that has its fused attention


def causal_attention(
    query: Float[Array, "batch time heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    *,
    window: int | None = None,
    empty: Int[Array, ""] | None = None,
) -> Float[Array, "batch time heads head_dim"]:
    """Softmax attention of each token to itself and the tokens before it, scores scaled by ``head_dim ** -0.5``.

    On an NVIDIA GPU this is `jax.nn.dot_product_attention` by cuDNN for whole texts in bfloat16 or float16 whose heads
    have up to 128 channels, a multiple of 8. Everywhere else it is `blockwise_attention`, which gives the same up to
    rounding. cuDNN's has gradients in reverse mode only, and none of second order.

    Args:
      query, key, value, window, empty: as for `blockwise_attention`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import causal_attention
      >>> zero, value = jnp.zeros((1, 3, 1, 2)), jnp.arange(3.0)[None, :, None, None].repeat(2, -1)
      >>> print(causal_attention(zero, zero, value)[0, :, 0, 0])  # equal scores: the mean of the tokens so far
      [0.  0.5 1. ]
    """
    if empty is None and _fits_cudnn(query, key, value):
        is_local = window is not None and window < query.shape[1]
        near = (window - 1, 0) if window is not None and is_local else None
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=True, local_window_size=near, implementation="cudnn"
        )
    return blockwise_attention(query, key, value, window=window, empty=empty)


def _fits_cudnn(query: Array, key: Array, value: Array) -> bool:
    """Whether cuDNN can answer all queries of a text, whose keys and values are those of the same tokens."""
    head_dim = query.shape[-1]
    return (
        query.shape == key.shape == value.shape
        and query.shape[1] > 0
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and head_dim % 8 == 0
        and head_dim <= LARGEST_HEAD
        and _has_fused_attention(jax.local_devices()[0])
    )


def _has_fused_attention(device: jax.Device) -> bool:
    """Whether a device is an NVIDIA GPU of compute capability 8.0 or later; those of other makers say it otherwise."""
    capability = re.fullmatch(r"(\d+)\.\d+", getattr(device, "compute_capability", None) or "")
    return device.platform == "gpu" and capability is not None and int(capability[1]) >= 8
