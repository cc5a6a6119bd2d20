"""Minimisers of a function of one array: what updates a generalised optimizer's memory (Def. 5)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

Loss = Callable[[Array], Array]
Solver = Callable[[Loss, Array], Array]  # from a loss and where to start


def newton(steps: int = 1) -> Solver:
    """Newton's method, elementwise: exact after one step for losses that are quadratic in each element on its own.

    An element along which the loss is not convex stays.
    """

    def solve(loss, start):
        slope = jax.grad(loss)

        def step(_, m):
            gradient, curvature = jax.jvp(slope, (m,), (jnp.ones_like(m),))  # the Hessian is diagonal
            return m - jnp.where(curvature > 0, gradient / jnp.where(curvature > 0, curvature, 1.0), 0.0)

        return step(0, start) if steps == 1 else jax.lax.fori_loop(0, steps, step, start)

    return solve


def gradient_descent(rate: float, steps: int = 1) -> Solver:
    """Steps of gradient descent, the paper's way to update a memory."""

    def solve(loss, start):
        step = lambda _, m: m - rate * jax.grad(loss)(m)  # noqa: E731
        return step(0, start) if steps == 1 else jax.lax.fori_loop(0, steps, step, start)

    return solve


def conjugate_gradient(iterations: int) -> Solver:
    """For a convex quadratic loss that couples elements; exact after one iteration per eigenvalue."""

    def solve(loss, start):
        slope = jax.grad(loss)
        hessian = lambda v: jax.jvp(slope, (start,), (v,))[1]  # noqa: E731
        return start - jax.scipy.sparse.linalg.cg(hessian, slope(start), tol=0.0, maxiter=iterations)[0]

    return solve
