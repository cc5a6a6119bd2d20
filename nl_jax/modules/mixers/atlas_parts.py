"""What Atlas (Behrouz et al., 2025) adds to a memory: polynomial features of keys and queries, orthogonal updates."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.modules.layers import unit_length
from nl_jax.ops import narrow_like, widen
from nl_jax.optim import newton_schulz


def check_count(name: str, value: Any, least: int) -> None:
    """Raises ``ValueError`` unless an option of this name is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")


def initial_powers(num_heads: int, degree: int) -> Float[Array, "heads degree"]:
    """The coefficients of the powers 1 to ``degree`` at first, 1/n!, as in the series of the exponential function."""
    row = jnp.array([1.0 / math.factorial(n) for n in range(1, degree + 1)], jnp.float32)
    return jnp.tile(row, (num_heads, 1))


def polynomial_features(
    x: Float[Array, "batch heads C head_dim"], powers: Float[Array, "batch heads degree"]
) -> Float[Array, "batch heads C features"]:
    """Powers of each channel side by side, ``[a_1 z, a_2 z², ...]`` at unit length, with z = x √head_dim.

    Zero stays zero. z has entries of about 1 where x has unit length, so that its powers have about one size.
    """
    z = widen(x) * x.shape[-1] ** 0.5
    parts = [powers[..., n, None, None] * z ** (n + 1) for n in range(powers.shape[-1])]
    return narrow_like(unit_length(jnp.concatenate(parts, axis=-1)), x)


def orthogonal_update(update: Float[Array, "... in out"], steps: int) -> Float[Array, "... in out"]:
    """The update with its singular values made about equal by Newton-Schulz, at the Frobenius norm that it had.

    Zero stays zero, and its gradient is zero.
    """
    square = jnp.sum(jnp.square(update), axis=(-2, -1), keepdims=True)
    is_some = square > 1e-20
    some = jnp.where(is_some, update, jnp.eye(update.shape[-2], update.shape[-1], dtype=update.dtype))
    found = newton_schulz(some, steps)
    length = jnp.sqrt(jnp.where(is_some, square, 1.0) / jnp.sum(jnp.square(found), axis=(-2, -1), keepdims=True))
    return jnp.where(is_some, length * found, 0.0)
