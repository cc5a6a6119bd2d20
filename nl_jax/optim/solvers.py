"""Minimisers of a function of one array: what updates a generalised optimizer's memory (Def. 5)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nl_jax.optim.bounded import check_integer

Loss = Callable[[Array], Array]
Solver = Callable[[Loss, Array], Array]  # from a loss and where to start


def newton(steps: int = 1) -> Solver:
    """Newton's method, elementwise: exact after one step for losses that are quadratic in each element on its own.

    An element along which the loss is not convex stays.

    Raises:
      ValueError: for no step.
    """
    check_integer("steps", steps, 1)

    def solve(loss, start):
        slope = jax.grad(loss)

        def step(_, m):
            gradient, curvature = jax.jvp(slope, (m,), (jnp.ones_like(m),))  # the Hessian is diagonal
            return m - jnp.where(curvature > 0, gradient / jnp.where(curvature > 0, curvature, 1.0), 0.0)

        return step(0, start) if steps == 1 else jax.lax.fori_loop(0, steps, step, start)

    return solve


def gradient_descent(rate: float, steps: int = 1) -> Solver:
    """Steps of gradient descent, the paper's way to update a memory; a ``ValueError`` for no step."""
    check_integer("steps", steps, 1)

    def solve(loss, start):
        step = lambda _, m: m - rate * jax.grad(loss)(m)  # noqa: E731
        return step(0, start) if steps == 1 else jax.lax.fori_loop(0, steps, step, start)

    return solve


def conjugate_gradient(iterations: int) -> Solver:
    """For a convex quadratic loss that couples elements; exact after one iteration per eigenvalue.

    It stops where the slope is exhausted, at a part of its first length that the dtype resolves, and where a direction
    has no curvature; further iterations change nothing.

    Raises:
      ValueError: for no iteration.
    """
    check_integer("iterations", iterations, 1)

    def solve(loss, start):
        slope, curvature_along = jax.linearize(jax.grad(loss), start)
        size = jnp.max(jnp.abs(slope), initial=0.0)
        residual = -slope / jnp.where(size > 0, size, 1.0)  # of the size 1, so that no square overflows or vanishes
        enough = jnp.finfo(residual.dtype).eps ** 2 * jnp.sum(residual**2)

        def step(_, carry):
            found, residual, direction = carry
            curved = curvature_along(direction)
            square, curvature = jnp.sum(residual**2), jnp.sum(direction * curved)
            go = (square > enough) & (curvature > 0)
            rate = jnp.where(go, square / jnp.where(go, curvature, 1.0), 0.0)
            left = residual - rate * curved
            turned = left + jnp.sum(left**2) / jnp.where(go, square, 1.0) * direction
            return found + rate * direction, left, jnp.where(go, turned, direction)

        found = jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(start), residual, residual))[0]
        return start + size * found

    return solve
