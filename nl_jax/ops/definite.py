"""Positive definite systems that rounding errors may have made indefinite, by a Cholesky decomposition."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

REFINEMENTS = 2  # corrections of a solution with its residual


def solve_definite(system: Float[Array, "... n n"], right: Float[Array, "... n m"]) -> Float[Array, "... n m"]:
    """The solution of ``A X = B``, up to rounding errors; finite for every A that is a finite sum of x xᵀ.

    A system that is not finite has a solution that is not.

    Args:
      system: A, symmetric, with a positive diagonal; leading axes are independent systems.
      right: B.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import solve_definite
      >>> print(solve_definite(jnp.diag(jnp.array([2.0, 4.0])), jnp.ones((2, 1))).round(3)[:, 0])
      [0.5  0.25]
    """
    scale = jax.lax.rsqrt(jnp.diagonal(system, axis1=-2, axis2=-1))  # makes the diagonal 1
    system = scale[..., :, None] * system * scale[..., None, :]
    solution = jnp.vectorize(_solve, signature="(n,n),(n,m)->(n,m)")(system, scale[..., None] * right)
    return scale[..., None] * solution


def _solve(system: Float[Array, "n n"], right: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Solves a positive definite system with ones on its diagonal, up to rounding errors.

    The decomposed matrix has a little more on its diagonal, so that rounding errors cannot make it indefinite; the
    refinements take that back where the system is well determined.
    """
    eye = jnp.eye(len(system), dtype=system.dtype)

    def factor(more):
        return jnp.linalg.cholesky(system + more * eye, symmetrize_input=False)

    def fails(more):
        decomposed = jnp.linalg.cholesky(fixed + more * eye, symmetrize_input=False)
        # with n more the matrix is diagonally dominant: it fails then only if it is not finite, and so is the solution
        return ~jnp.all(jnp.isfinite(decomposed)) & (more <= len(system))

    # almost always the first try: it fails (NaN) only where the sums of the state are less exact than one sum
    fixed = jax.lax.stop_gradient(system)
    more = jax.lax.while_loop(
        fails,
        lambda more: 8.0 * more,
        jnp.asarray(len(system) * jnp.finfo(system.dtype).eps, system.dtype),
    )
    decomposed = (factor(more), True)
    solution = jax.scipy.linalg.cho_solve(decomposed, right)
    for _ in range(REFINEMENTS):
        solution = solution + jax.scipy.linalg.cho_solve(decomposed, right - system @ solution)
    return solution
