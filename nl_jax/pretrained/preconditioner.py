"""Steps that change answers to new inputs, and hardly those to old ones, by the inverse of what the inputs were."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.ops import solve_definite
from nl_jax.pretrained.changes import Seen


def preconditioned(
    seen: Seen, gradient: Float[Array, "blocks in out"], ridge: float | Array
) -> Float[Array, "blocks in out"]:
    """``(Σ x xᵀ + ridge · n · I)⁻¹ G`` for each block, n the harmonic mean of ‖x‖²; zero where nothing has been seen.

    Some tokens of a trained model have inputs a thousand times as long as others; the usual mean would be theirs. They
    may also make the sum so ill-conditioned that its type cannot factor it, which `solve_definite` sees to.
    """
    diagonal = _diagonal(seen, ridge)[:, None, None] * jnp.eye(seen.products.shape[-1])
    return solve_definite(seen.products + diagonal, gradient)


def sparing(seen: Seen, ridge: float | Array) -> Float[Array, "blocks in in"]:
    """``(I + Σ x xᵀ / (ridge · n))⁻¹`` for each block, by which any rule's step is multiplied to spare these inputs.

    An input x that was seen m times, with ‖x‖² = n, gets 1 / (1 + m / ridge) of the step, and one at right angles to
    all that were seen gets all of it. The identity where nothing has been seen.
    """
    eye = jnp.broadcast_to(jnp.eye(seen.products.shape[-1]), seen.products.shape)
    return _diagonal(seen, ridge)[:, None, None] * preconditioned(seen, eye, ridge)


def _diagonal(seen: Seen, ridge: float | Array) -> Float[Array, " blocks"]:
    """``ridge · n``, or 1 where nothing has been seen."""
    norm = seen.inputs / jnp.where(seen.inverse > 0, seen.inverse, jnp.inf)
    return jnp.where(norm > 0, ridge * norm, 1.0)
