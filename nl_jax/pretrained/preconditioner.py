"""The step of a preconditioned level: a gradient times the inverse of what the inputs were (Eq. 46-47)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.pretrained.changes import Seen


def preconditioned(
    seen: Seen, gradient: Float[Array, "blocks in out"], ridge: float | Array
) -> Float[Array, "blocks in out"]:
    """``(Σ x xᵀ + ridge · n · I)⁻¹ G`` for each block, n the harmonic mean of ‖x‖²; zero where nothing has been seen.

    Some tokens of a trained model have inputs a thousand times as long as others; the usual mean would be theirs. They
    may also make the sum so ill-conditioned that its type cannot factor it. The ridge is then as large as it must be.
    """
    size = seen.products.shape[-1]
    norm = seen.inputs / jnp.where(seen.inverse > 0, seen.inverse, jnp.inf)
    trace = jnp.trace(seen.products, axis1=-2, axis2=-1)
    own = jnp.where(norm > 0, ridge * norm, 1.0)
    least = jnp.maximum(own, size * jnp.finfo(trace.dtype).eps * trace)  # what rounding of the sum can be at most

    def whole(diagonal):
        return seen.products + diagonal[:, None, None] * jnp.eye(size)

    factors = jnp.linalg.cholesky(jax.lax.stop_gradient(whole(own)))
    diagonal = jnp.where(jnp.all(jnp.isfinite(factors), axis=(-2, -1)), own, least)
    return jax.vmap(lambda a, g: jax.scipy.linalg.solve(a, g, assume_a="pos"))(whole(diagonal), gradient)
