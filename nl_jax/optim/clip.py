"""Norms and clipping whose derivatives are finite at zero, for use inside meta-gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nl_jax.optim.bounded import widen


def smooth_norm(tree: Any) -> Float[Array, ""]:
    """L2 norm over all leaves of a tree, whose derivative is zero if all leaves are zero.

    The derivative of ``optax.tree.norm`` is NaN there. Leaves narrower than float32 are squared and summed in float32.
    Entries whose squares would overflow or underflow, such as 1e30, are scaled before.

    Examples:
      >>> print(jax.grad(smooth_norm)(jnp.zeros(2)))
      [0. 0.]
    """
    power, scaled = _scaled(tree)
    square = _square(scaled)
    positive = square > 0.0
    return power * jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    r"""Scales updates down to a global norm of at most ``max_norm``; safe to differentiate through.

    .. math:: u \leftarrow u \cdot \min(1, c / \lVert u \rVert)

    The values are those of ``optax.clip_by_global_norm``, whose derivative is NaN if all updates are zero. Here the
    derivative is the identity in this case, as it is whenever the norm is below ``max_norm``. Updates whose squares
    overflow or underflow are clipped as well.

    Args:
      max_norm: c, the largest norm; positive. With infinity nothing is clipped.

    Raises:
      ValueError: if ``max_norm`` is not positive.

    Examples:
      >>> clip = clip_by_norm(1.0)
      >>> print(jax.grad(lambda u: clip.update(u, clip.init(u))[0].sum())(jnp.zeros(2)))
      [1. 1.]
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm={max_norm}: expected a positive number")

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        power, scaled = _scaled(jax.lax.stop_gradient(updates))
        square = _square(scaled)
        # False for NaN, so that a NaN reaches the updates
        short = (jnp.sqrt(square) < max_norm / power) | (square == 0.0)
        # what is not clipped stays out of the quotient: its slopes, which nothing uses, may be infinite
        unit = jax.tree.map(lambda u: jnp.where(short, 0.0, u) * (1.0 / power), widen(updates))
        norm = jnp.sqrt(jnp.where(short, 1.0, _square(unit)))
        limit = jnp.where(short, 1.0, max_norm)

        def clip(u: Array, part: Array) -> Array:
            return jnp.where(short, u, (part.astype(u.dtype) / norm.astype(u.dtype)) * limit.astype(u.dtype))

        return jax.tree.map(clip, updates, unit), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _square(tree: Any) -> Float[Array, ""]:
    """The sum of squares over all leaves, in float32 or wider."""
    return jnp.asarray(optax.tree.norm(widen(tree), squared=True))


def _scaled(tree: Any) -> tuple[Array, Any]:
    """A power of two near the largest entry, and the tree in float32 or wider divided by it, which rounds nothing."""
    wide = widen(tree)
    sizes = (jnp.max(jnp.abs(leaf), initial=0.0).astype(jnp.float32) for leaf in jax.tree.leaves(wide))
    largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, sizes, jnp.float32(0.0)))
    exponent = jax.lax.bitcast_convert_type(largest, jnp.uint32) & 0x7F800000  # without the bits of the mantissa
    power = jnp.clip(jax.lax.bitcast_convert_type(exponent, jnp.float32), 2.0**-125, 2.0**125)
    power = jnp.where(largest > 0.0, power, 1.0)
    return power, jax.tree.map(lambda leaf: leaf * (1.0 / power), wide)


def shortened(tree: Any, limit: Array) -> Any:
    """The tree, or if its norm is above ``limit`` one in the same direction with that norm, which cannot overflow."""
    # scaled by the largest entry first, since the squares of a long step overflow
    largest = functools.reduce(jnp.maximum, (jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)))
    largest = jnp.where(largest > 0, largest, 1.0)
    unit = jax.tree.map(lambda leaf: leaf / largest, tree)
    scale = jnp.minimum(largest, limit / jnp.maximum(smooth_norm(unit), 1e-6))
    return jax.tree.map(lambda leaf: leaf * scale, unit)
