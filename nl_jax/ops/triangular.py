"""Solution of a unit lower-triangular system: the only one that the closed form of a chunk needs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.ops.in_kernel import is_in_kernel, masked_solve
from nl_jax.ops.products import over_leading

BLOCK_SIZE = 8  # larger blocks lose digits: for equal keys the powers of L hold binomials, 35 at 8 rows, 6435 at 16


def _inverse_of_block(lower: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """``(I + L)^-1 = (I - L)(I + L²)(I + L⁴)...``, exact since L is nilpotent."""
    inverse = jnp.eye(lower.shape[-1], dtype=lower.dtype) - lower
    power, degree = lower, 2
    while degree < lower.shape[-1]:
        power = power @ power
        inverse = inverse + inverse @ power
        degree *= 2
    return inverse


@jax.custom_jvp
def _inverse(lower: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """``(I + L)^-1``."""
    n = lower.shape[-1]
    if n <= BLOCK_SIZE:
        return _inverse_of_block(lower)
    blocks = -(-n // BLOCK_SIZE)
    size = BLOCK_SIZE * (1 << (blocks - 1).bit_length())
    pad = size - n
    padded = jnp.pad(lower, [(0, 0)] * (lower.ndim - 2) + [(0, pad), (0, pad)])
    count, b = size // BLOCK_SIZE, BLOCK_SIZE
    tiles = padded.reshape(*lower.shape[:-2], count, b, count, b)
    diagonal = jnp.stack([tiles[..., i, :, i, :] for i in range(count)], axis=-3)
    inverse = _inverse_of_block(diagonal)  # [..., blocks, b, b]
    while count > 1:
        # [[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]] for every pair of neighbouring blocks
        tiles = padded.reshape(*lower.shape[:-2], count, b, count, b)
        below = jnp.stack([tiles[..., 2 * i + 1, :, 2 * i, :] for i in range(count // 2)], axis=-3)
        top, bottom = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -bottom @ below @ top
        inverse = jnp.concatenate(
            [
                jnp.concatenate([top, jnp.zeros_like(top)], axis=-1),
                jnp.concatenate([corner, bottom], axis=-1),
            ],
            axis=-2,
        )
        count, b = count // 2, 2 * b
    return inverse[..., 0, :n, :n]


@_inverse.defjvp
def _inverse_jvp(primals, tangents):
    inverse = _inverse(*primals)
    return inverse, -inverse @ jnp.tril(tangents[0], -1) @ inverse


def solve_unit_lower(
    lower: Float[Array, "... n n"], right: Float[Array, "... n columns"]
) -> Float[Array, "... n columns"]:
    """``(I + L)^-1 R`` for strictly lower-triangular L, batched over leading axes, which broadcast.

    Entries on and above the diagonal of L must be zero. The inverse costs about n³/3 multiply-adds, all in matrix
    products: 8 × 8 blocks on the diagonal first, then pairs of neighbours. The backward pass is two products.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import solve_unit_lower
      >>> print(solve_unit_lower(jnp.array([[0.0, 0.0], [2.0, 0.0]]), jnp.array([[1.0], [5.0]]))[:, 0])
      [1. 3.]
    """
    return over_leading(masked_solve if is_in_kernel() else _solve, lower, right)


@jax.custom_jvp
def _solve(lower, right):
    return _inverse(lower) @ right


@_solve.defjvp
def _solve_jvp(primals, tangents):
    lower, right = primals
    d_lower, d_right = tangents
    inverse = _inverse(lower)
    solution = inverse @ right
    return solution, inverse @ (d_right - jnp.tril(d_lower, -1) @ solution)
