"""Norms and clipping whose derivatives are finite at zero, for use inside meta-gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nl_jax.optim.bounded import widen


def smooth_norm(tree: Any) -> Float[Array, ""]:
    """L2 norm over all leaves of a tree, whose derivative is zero if all leaves are zero.

    The derivative of ``optax.tree.norm`` is NaN there. Leaves narrower than float32 are squared and summed in float32.

    Examples:
      >>> print(jax.grad(smooth_norm)(jnp.zeros(2)))
      [0. 0.]
    """
    square = _square(tree)
    positive = square > 0.0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    r"""Scales updates down to a global norm of at most ``max_norm``; safe to differentiate through.

    .. math:: u \leftarrow u \cdot \min(1, c / \lVert u \rVert)

    The values are those of ``optax.clip_by_global_norm``, whose derivative is NaN if all updates are zero. Here the
    derivative is the identity in this case, as it is whenever the norm is below ``max_norm``.

    Args:
      max_norm: c, the largest norm; positive.

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
        square = _square(updates)
        # the floor is below the norm that triggers clipping; it keeps the slope of the root bounded
        norm = jnp.sqrt(jnp.maximum(square, 0.25 * max_norm**2))
        short = norm < max_norm  # False for NaN, so that a NaN reaches the updates
        return jax.tree.map(lambda u: jnp.where(short, u, (u / norm.astype(u.dtype)) * max_norm), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _square(tree: Any) -> Float[Array, ""]:
    """The sum of squares over all leaves, in float32 or wider."""
    return jnp.asarray(optax.tree.norm(widen(tree), squared=True))
