"""Products with a transpose, over leading axes.

Written as ``dot_general``, whose own transpose rule leaves no copies of what is large in memories: ``x @ yᵀ`` by
``swapaxes`` would, and so would an axis of size 1 beside the transposed ones (XLA on CPU).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def inner_products(x: Float[Array, "... C in"], y: Float[Array, "... D in"]) -> Float[Array, "... C D"]:
    """``x yᵀ``: of every row of x with every row of y. Leading axes broadcast."""
    return over_leading(_inner_products, x, y)


def outer_products(x: Float[Array, "... C in"], y: Float[Array, "... C out"]) -> Float[Array, "... in out"]:
    """``xᵀ y``: the sum of the outer products of the rows of x and y. Leading axes broadcast."""
    return over_leading(_outer_products, x, y)


def over_leading(product: Callable[[Array, Array], Array], x: Array, y: Array) -> Array:
    """``product`` of matrices, over leading axes: it gets operands whose are equal, without those of size 1."""
    leading = jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    kept = tuple(size for size in leading if size != 1)
    x, y = (jnp.broadcast_to(u, leading + u.shape[-2:]).reshape(*kept, *u.shape[-2:]) for u in (x, y))
    result = product(x, y)
    return result.reshape(*leading, *result.shape[-2:])


def _inner_products(x, y):
    leading = tuple(range(x.ndim - 2))
    return jax.lax.dot_general(x, y, (((x.ndim - 1,), (x.ndim - 1,)), (leading, leading)))


def _outer_products(x, y):
    leading = tuple(range(x.ndim - 2))
    return jax.lax.dot_general(x, y, (((x.ndim - 2,), (x.ndim - 2,)), (leading, leading)))
