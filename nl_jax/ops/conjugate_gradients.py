"""Conjugate gradients for many small positive definite systems at once, with exact derivatives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LARGEST_RESIDUAL = 1e12  # squared, relative to the right side's: a system that rounding errors drive above it stops

Apply = Callable[[Float[Array, "... size"]], Float[Array, "... size"]]


def solve_positive_definite(
    apply: Apply, right: Float[Array, "... size"], *, least: float, iterations: int
) -> Float[Array, "... size"]:
    """Solves ``A x = b`` for symmetric positive definite A by conjugate gradients, a fixed number of iterations.

    Derivatives are implicit: those of the exact solution, where the backward pass solves with A once more, by the same
    iterations. So memory does not grow with their number, and a solution that is exact to a tolerance has derivatives
    that are. Every finite A and b give a finite x: a system stops at its tolerance, the rounding error of its type, or
    where rounding errors make it diverge.

    Args:
      apply: ``p -> A p`` for all systems at once. Each system is one row along the last axis, with an A of its own.
      right: b.
      least: a positive lower bound of A's eigenvalues.
      iterations: at least 1; the number of A's different eigenvalues is enough but for rounding errors.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import solve_positive_definite
      >>> system = jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> x = solve_positive_definite(lambda p: p @ system, jnp.array([[3.0, 3.0]]), least=1.0, iterations=2)
      >>> print(x.round(3))
      [[1. 1.]]
    """
    return jax.lax.custom_linear_solve(
        apply, right, lambda apply, b: _iterate(apply, b, least, iterations), symmetric=True
    )


def _iterate(apply: Apply, right: Array, least: float, iterations: int) -> Array:
    tiny = jnp.finfo(right.dtype).tiny
    scale = jnp.maximum(jnp.max(jnp.abs(right), axis=-1, keepdims=True), tiny)
    right = right / scale  # squares neither overflow nor vanish
    start = _square(right)
    tolerance = jnp.finfo(right.dtype).eps ** 2 * start

    def step(state, _):
        x, residual, direction, square = state
        image = apply(direction)
        curvature = jnp.sum(direction * image, axis=-1, keepdims=True)
        # without rounding errors it is never below the bound
        curvature = jnp.maximum(jnp.maximum(curvature, least * _square(direction)), tiny)
        goes_on = (square > tolerance) & (square < LARGEST_RESIDUAL * start)
        rate = jnp.where(goes_on, square / curvature, 0.0)
        x, residual = x + rate * direction, residual - rate * image
        new = jnp.where(goes_on, _square(residual), square)
        return (x, residual, residual + new / jnp.maximum(square, tiny) * direction, new), None

    state = jnp.zeros_like(right), right, right, start
    return scale * jax.lax.scan(step, state, length=iterations)[0][0]


def _square(x: Array) -> Array:
    return jnp.sum(jnp.square(x), axis=-1, keepdims=True)
