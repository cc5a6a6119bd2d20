"""Minimisers of a function of one array, which update the memories of generalised optimizers (Def. 5)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nl_jax.optim.bounded import check_integer

Loss = Callable[[Array], Array]
Solver = Callable[[Loss, Array], Array]  # from a loss and a starting point to the minimiser


def newton(steps: int = 1) -> Solver:
    """Newton's method with a diagonal Hessian: exact after one step for sums of quadratic functions of one element.

    An element in which the loss is not convex is not changed.

    Raises:
      ValueError: if there is no step.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import newton
      >>> loss = lambda m: jnp.sum(jnp.array([1.0, 10.0]) * (m - 3.0) ** 2)
      >>> print(newton()(loss, jnp.zeros(2)))
      [3. 3.]
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
    """Gradient descent, with which the paper updates a memory. Raises a ``ValueError`` if there is no step.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import gradient_descent
      >>> loss = lambda m: 0.5 * jnp.sum((m - 1.0) ** 2)
      >>> print(gradient_descent(0.5)(loss, jnp.zeros(2)), gradient_descent(0.5, steps=2)(loss, jnp.zeros(2)))
      [0.5 0.5] [0.75 0.75]
    """
    check_integer("steps", steps, 1)

    def solve(loss, start):
        step = lambda _, m: m - rate * jax.grad(loss)(m)  # noqa: E731
        return step(0, start) if steps == 1 else jax.lax.fori_loop(0, steps, step, start)

    return solve


def conjugate_gradient(iterations: int) -> Solver:
    """The conjugate gradient method, for convex quadratic losses; exact after one iteration per distinct eigenvalue.

    It stops when the gradient is as small, relative to the first one, as the dtype can resolve, or when a direction has
    no curvature. Further iterations change nothing.

    Raises:
      ValueError: if there is no iteration.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import conjugate_gradient
      >>> loss = lambda m: 0.5 * jnp.sum(jnp.array([1.0, 10.0]) * m**2) - jnp.sum(m)
      >>> print(conjugate_gradient(2)(loss, jnp.zeros(2)).round(3))  # two eigenvalues, two iterations
      [1.  0.1]
    """
    check_integer("iterations", iterations, 1)

    def solve(loss, start):
        slope, curvature_along = jax.linearize(jax.grad(loss), start)
        size = jnp.max(jnp.abs(slope), initial=0.0)
        residual = -slope / jnp.where(size > 0, size, 1.0)  # scaled to norm 1, so that no square overflows or vanishes
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
