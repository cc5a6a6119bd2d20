"""A linear map that comes with its own transpose, differentiable in every mode and order.

A tangent rule (``jax.custom_jvp``) gives forward mode, and JAX derives reverse mode by transposing it. Where the
transpose that JAX derives is slow, this puts a hand-written one in its place.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def apply_linear(function: Callable[[Any], Any], transpose: Callable[[Any], Any], x: Any) -> Any:
    """``function(x)``, of which reverse mode takes ``transpose`` for its transpose.

    JAX has no public call for this that can also be differentiated in what both functions close over. Its linear solve
    can, so the map is written as one: (x, y) with ``y - function(x) = 0``, whose solution and transposed solution are
    one call each. Only derivatives of second order use the transpose that JAX derives from ``function``.

    Args:
      function: linear, from a pytree of arrays to another one.
      transpose: from cotangents like the output to cotangents like x.
      x: a pytree of arrays of floating point numbers.
    """
    outputs = jax.eval_shape(function, x)
    # an empty sum of x instead of a constant: reverse mode wants every right-hand side to depend on what it transposes
    zero = functools.reduce(jnp.add, (jnp.sum(leaf.reshape(-1)[:0]) for leaf in jax.tree.leaves(x)))
    zeros = jax.tree.map(lambda s: jnp.broadcast_to(zero.astype(s.dtype), s.shape), outputs)

    def residual(unknown):
        x, y = unknown
        return x, jax.tree.map(jnp.subtract, y, function(x))

    def solve(_, right):
        x, y = right
        return x, jax.tree.map(jnp.add, y, function(x))

    def solve_transposed(_, right):
        x, y = right
        return jax.tree.map(jnp.add, x, transpose(y)), y

    return jax.lax.custom_linear_solve(residual, (x, zeros), solve, solve_transposed)[1]
