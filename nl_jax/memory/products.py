"""Products with a transpose, over leading axes, whose backward pass makes no copies.

XLA on CPU folds a transpose into a product unless an axis of size 1 stands beside it, and JAX's own rule for the
operand that was transposed gives its cotangent transposed: both then cost a copy of arrays that are large in memories.
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
    kept = tuple(size for size in leading if size > 1)
    x, y = (jnp.broadcast_to(u, leading + u.shape[-2:]).reshape(*kept, *u.shape[-2:]) for u in (x, y))
    result = product(x, y)
    return result.reshape(*leading, *result.shape[-2:])


def _transpose(x):
    return jnp.swapaxes(x, -1, -2)


@jax.custom_vjp
def _inner_products(x, y):
    return x @ _transpose(y)


_inner_products.defvjp(
    lambda x, y: (_inner_products(x, y), (x, y)),
    lambda saved, cotangent: (cotangent @ saved[1], _transpose(cotangent) @ saved[0]),
)


@jax.custom_vjp
def _outer_products(x, y):
    return _transpose(x) @ y


_outer_products.defvjp(
    lambda x, y: (_outer_products(x, y), (x, y)),
    lambda saved, cotangent: (saved[1] @ _transpose(cotangent), saved[0] @ cotangent),
)
