"""The step of a preconditioned level: a gradient times the inverse of what the inputs were (Eq. 46-47)."""

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
    norm = seen.inputs / jnp.where(seen.inverse > 0, seen.inverse, jnp.inf)
    diagonal = jnp.where(norm > 0, ridge * norm, 1.0)[:, None, None] * jnp.eye(seen.products.shape[-1])
    return solve_definite(seen.products + diagonal, gradient)
