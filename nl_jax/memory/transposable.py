"""A linear map that comes with its own transpose, differentiable in every mode and order.

A tangent rule (``jax.custom_jvp``) gives forward mode, and JAX derives reverse mode by transposing it. Where the
transpose that JAX derives is slow, this puts a hand-written one in its place.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def apply_linear(
    function: Callable[[Array], Array], transpose: Callable[[Array], Array], x: Float[Array, "batch n ..."]
) -> Float[Array, "batch m ..."]:
    """``function(x)``, of which reverse mode takes ``transpose`` for its transpose.

    JAX has no public call for this that can also be differentiated in what both functions close over. Its linear solve
    can, so the map is written as one: (x, y) side by side with ``y - function(x) = 0``, whose solution and transposed
    solution are one call each; XLA drops what only puts them side by side. Only derivatives of second order use the
    transpose that JAX derives from ``function``.

    Args:
      function: linear, to an array that differs from x in its second axis only.
      transpose: from cotangents like the output to cotangents like x.
      x: floating point numbers.
    """
    size = x.shape[1]

    def cut(both):
        return both[:, :size], both[:, size:]

    def residual(unknown):
        x, y = cut(unknown)
        return jnp.concatenate([x, y - function(x)], axis=1)

    def solve(_, right):
        x, y = cut(right)
        return jnp.concatenate([x, y + function(x)], axis=1)

    def solve_transposed(_, right):
        x, y = cut(right)
        return jnp.concatenate([x + transpose(y), y], axis=1)

    # one array of which every part depends on x, since reverse mode refuses a right-hand side of which some do not
    right = jnp.pad(x, [(0, 0), (0, jax.eval_shape(function, x).shape[1]), *[(0, 0)] * (x.ndim - 2)])
    return cut(jax.lax.custom_linear_solve(residual, right, solve, solve_transposed))[1]
