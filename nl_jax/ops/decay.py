"""The matrix of all products of consecutive coefficients: how much of what was written at s is left at t."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.ops.in_kernel import is_in_kernel, masked_decay, rolled

DECAY_BLOCK_SIZE = 8  # rows whose decay products are computed one after the other


def decay_matrix(rate: Float[Array, "... C"]) -> Float[Array, "... C C"]:
    """Lower-triangular matrix of ``Π_{s<i≤t} rate_i`` at [t, s]; ones on the diagonal, zeros above.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import decay_matrix
      >>> print(decay_matrix(jnp.array([0.3, 0.5, 0.1]))[2])  # at token 2, of what tokens 0, 1 and 2 wrote
      [0.05 0.1  1.  ]
    """
    return masked_decay(rate) if is_in_kernel() else _decay_matrix(rate)


@jax.custom_jvp
def _decay_matrix(rate):
    size = rate.shape[-1]
    if size <= DECAY_BLOCK_SIZE:
        return _products(rate)
    blocks = -(-size // DECAY_BLOCK_SIZE)
    rate = jnp.pad(rate, [(0, 0)] * (rate.ndim - 1) + [(0, blocks * DECAY_BLOCK_SIZE - size)])
    rate = rate.reshape(*rate.shape[:-1], blocks, DECAY_BLOCK_SIZE)
    inside = _products(rate)
    start = rate[..., :1] * inside[..., :, 0]  # from the start of a block to its row t
    # from the end of one block to the start of another one
    between = _decay_matrix(start[..., -1])
    between = shift(between, -2)
    # [block of t, block of s, t, s], zero for a later block
    across = start[..., :, None, :, None] * between[..., None, None] * inside[..., None, :, -1:, :]
    same = jnp.eye(blocks, dtype=bool)[:, :, None, None]
    products = jnp.where(same, inside[..., :, None, :, :], across)
    products = jnp.moveaxis(products, -2, -3)
    products = jax.lax.platform_dependent(products, cpu=_materialized, default=lambda x: x)
    return products.reshape(*rate.shape[:-2], blocks * DECAY_BLOCK_SIZE, blocks * DECAY_BLOCK_SIZE)[..., :size, :size]


def _materialized(x):
    """The same array. XLA on CPU would recompute it at each use; multiplying by the identity materialises it once."""
    return jnp.matmul(x, jnp.eye(x.shape[-1], dtype=x.dtype), precision="highest")


def _products(rate):
    """The decay matrix row by row, for small sizes."""
    size = rate.shape[-1]
    s = jnp.arange(size)
    rows = [jnp.broadcast_to((s == 0).astype(rate.dtype), rate.shape)]
    for t in range(1, size):
        rows.append(jnp.where(s == t, 1.0, rate[..., t, None] * rows[-1]))
    return jnp.stack(rows, axis=-2)


@_decay_matrix.defjvp
def _decay_jvp(primals, tangents):
    # d products[t,s] / d rate_i = products[t,i] products[i-1,s]: no division, so exact at rate 0
    (rate,), (tangent,) = primals, tangents
    products = _decay_matrix(rate)
    return products, products @ (tangent[..., :, None] * shift(products, -2))


def shift(x: Array, axis: int, first: float = 0.0) -> Array:
    """x one entry later along ``axis``: its last entry is dropped, and ``first`` stands in front.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import shift
      >>> print(shift(jnp.array([1, 2, 3]), axis=0, first=9))
      [9 1 2]
    """
    if is_in_kernel():
        return rolled(x, axis, first)
    pads = [(0, 0)] * x.ndim
    pads[axis] = (1, 0)
    return jnp.pad(jax.lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis), pads, constant_values=first)
