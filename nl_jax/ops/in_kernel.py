"""Operations of a chunk in the form that Pallas compiles for a TPU: masks and whole matrices in place of slices.

A kernel that keeps the state of memories on the chip runs the same functions as XLA's scan over chunks. Three of them
cut matrices into small blocks. That suits XLA, but Mosaic, the compiler of TPU kernels, cannot do it. While `in_kernel`
is on, they take the forms below, which give the same up to rounding, and products of bfloat16 (``products.py``) give
float32.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_ON = contextvars.ContextVar("in_kernel", default=False)


@contextlib.contextmanager
def in_kernel() -> Iterator[None]:
    """What is traced inside takes the forms for a kernel."""
    token = _ON.set(True)
    try:
        yield
    finally:
        _ON.reset(token)


def is_in_kernel() -> bool:
    """Whether `in_kernel` is on."""
    return _ON.get()


def product(x: Float[Array, "n m"], y: Float[Array, "m k"]) -> Float[Array, "n k"]:
    """``x y`` of two matrices in full precision."""
    return jax.lax.dot_general(x, y, (((1,), (0,)), ((), ())), precision=jax.lax.Precision.HIGHEST)


def _places(shape: tuple[int, ...], axis: int) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


@jax.custom_jvp
def masked_inverse(lower: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """``(I + L)^-1`` for strictly lower-triangular L: blocks of 1, 2, 4, ... rows are inverted from those of half.

    [[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]] for all pairs of neighbouring blocks at once, where a mask
    takes every B out of L: 2 log₂(n) products.
    """
    n = lower.shape[-1]
    row, column = _places((n, n), 0), _places((n, n), 1)
    inverse = (row == column).astype(lower.dtype)
    for level in range((n - 1).bit_length()):  # blocks of 2**level rows
        same_pair = row >> (level + 1) == column >> (level + 1)
        corners = jnp.where(same_pair & (row >> level > column >> level), lower, jnp.zeros_like(lower))
        inverse = inverse - product(product(inverse, corners), inverse)
    return inverse


@masked_inverse.defjvp
def _masked_inverse_jvp(primals, tangents):
    inverse = masked_inverse(*primals)
    n = inverse.shape[-1]
    below = jnp.where(_places((n, n), 0) > _places((n, n), 1), tangents[0], jnp.zeros_like(inverse))
    return inverse, -product(product(inverse, below), inverse)


def masked_solve(lower: Float[Array, "*stack n n"], right: Float[Array, "*stack n m"]) -> Float[Array, "*stack n m"]:
    """``(I + L)^-1 R`` of a matrix, or of each matrix of a stack."""
    if lower.ndim == 2:
        return product(masked_inverse(lower), right)
    return jnp.stack([masked_solve(one, other) for one, other in zip(lower, right, strict=True)])


def masked_decay(rate: Float[Array, "... n"]) -> Float[Array, "... n n"]:
    """`decay_matrix` of one memory: the inverse of ``I - A``, where A has the rates below the diagonal."""
    n = rate.shape[-1]
    below = _places((n, n), 0) == _places((n, n), 1) + 1
    rates = jnp.broadcast_to(rate.reshape(n)[:, None], (n, n))
    return masked_inverse(jnp.where(below, -rates, jnp.zeros_like(rates))).reshape(*rate.shape, n)


def rolled(x: Array, axis: int, first: float) -> Array:
    """`shift`, by a roll and a mask."""
    axis %= x.ndim
    return jnp.where(_places(x.shape, axis) == 0, jnp.asarray(first, x.dtype), jnp.roll(x, 1, axis))
