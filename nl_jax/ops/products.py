"""Matrix products with a transpose, with weights, and with blocks of columns, over leading axes.

The products with a transpose are ``dot_general`` calls, because its own transpose rule leaves no copies of large
operands. ``x @ yᵀ`` by ``swapaxes`` would leave one, and so would an axis of size 1 beside the transposed ones (XLA on
CPU).

A product with an operand in bfloat16 runs in bfloat16: both operands are converted, and the result is float32 (of wider
operands, their type). Sums of such products, as in the state of a memory, then lose nothing more. All other products
run in the type to which their operands promote.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nl_jax.ops.in_kernel import is_in_kernel


def matmul(x: Float[Array, "... C in"], y: Float[Array, "... in out"]) -> Float[Array, "... C out"]:
    """``x y``, where one operand in bfloat16 makes the product bfloat16 and the result float32.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import matmul
      >>> matmul(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4))).dtype
      dtype('float32')
    """
    return _in_one_type(jnp.matmul, x, y)


def narrow_like(x: Float[Array, "..."], other: Float[Array, "..."]) -> Float[Array, "..."]:
    """x in bfloat16 if ``other`` is, so that products with x run in that type; else x as it is.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import narrow_like
      >>> x = jnp.ones(2)
      >>> narrow_like(x, x.astype(jnp.bfloat16)).dtype, narrow_like(x, x).dtype
      (dtype(bfloat16), dtype('float32'))
    """
    return x.astype(other.dtype) if other.dtype == jnp.bfloat16 else x


def widen(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x in float32, or in its own type if that is wider.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import widen
      >>> widen(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def inner_products(x: Float[Array, "... C in"], y: Float[Array, "... D in"]) -> Float[Array, "... C D"]:
    """``x yᵀ``: the inner product of every row of x with every row of y. Leading axes broadcast.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import inner_products
      >>> inner_products(jnp.ones((5, 1, 3, 2)), jnp.ones((4, 7, 2))).shape
      (5, 4, 3, 7)
    """
    return over_leading(_inner_products, x, y)


def gram(x: Float[Array, "... C in"]) -> Float[Array, "... C C"]:
    """``x xᵀ``: the inner products of the rows of x.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import gram
      >>> print(gram(jnp.array([[1.0, 0.0], [1.0, 2.0]])))
      [[1. 1.]
       [1. 5.]]
    """
    return inner_products(x, x)


def outer_products(x: Float[Array, "... C in"], y: Float[Array, "... C out"]) -> Float[Array, "... in out"]:
    """``xᵀ y``: the sum of the outer products of the rows of x and y. Leading axes broadcast.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import outer_products
      >>> print(outer_products(jnp.eye(2), jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])))
      [[1. 2. 3.]
       [4. 5. 6.]]
    """
    return over_leading(_outer_products, x, y)


def weighted_product(
    weights: Float[Array, "... C"], x: Float[Array, "... C in"], y: Float[Array, "... in out"]
) -> Float[Array, "... C out"]:
    """``diag(w) x y``. The weights multiply x or the product, whichever has fewer columns.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import weighted_product
      >>> print(weighted_product(jnp.array([0.5, 2.0]), jnp.eye(2), jnp.ones((2, 3))))
      [[0.5 0.5 0.5]
       [2.  2.  2. ]]
    """
    weights = weights[..., None]
    if x.shape[-1] <= y.shape[-1]:
        return matmul(narrow_like(weights * x, x), y)
    return weights * matmul(x, y)


def weighted_outer_products(
    weights: Float[Array, "... C"], x: Float[Array, "... C in"], y: Float[Array, "... C out"]
) -> Float[Array, "... in out"]:
    """``xᵀ diag(w) y``. The weights multiply x or y, whichever has fewer columns.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import weighted_outer_products
      >>> print(weighted_outer_products(jnp.array([0.5, 2.0]), jnp.eye(2), jnp.ones((2, 3))))
      [[0.5 0.5 0.5]
       [2.  2.  2. ]]
    """
    weights = weights[..., None]
    x, y = (weights * x, y) if x.shape[-1] <= y.shape[-1] else (x, weights * y)
    return outer_products(x, y)


def squared_lengths(x: Float[Array, "... C in"]) -> Float[Array, "... C"]:
    """The squared length of every row, in float32 at least.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import squared_lengths
      >>> print(squared_lengths(jnp.array([[3.0, 4.0], [1.0, 1.0]])))
      [25.  2.]
    """
    return jnp.sum(jnp.square(widen(x)), axis=-1)


def block_squared_lengths(x: Float[Array, "... C columns"], blocks: int) -> Float[Array, "... blocks C"]:
    """The squared length of every row of each block, where x = [x_1, ..., x_blocks] has its blocks side by side.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import block_squared_lengths
      >>> print(block_squared_lengths(jnp.array([[3.0, 4.0, 1.0, 0.0]]), blocks=2)[:, 0])
      [25.  1.]
    """
    return jnp.swapaxes(squared_lengths(_cut_columns(x, blocks)), -1, -2)


def scale_blocks(
    weights: Float[Array, "... #blocks C"], x: Float[Array, "... C columns"], blocks: int
) -> Float[Array, "... C columns"]:
    """``[diag(w_1) x_1, diag(w_2) x_2, ...]``, where x = [x_1, ..., x_blocks] has its blocks side by side.

    Weights whose axis of blocks has size 1 count for every block.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import scale_blocks
      >>> print(scale_blocks(jnp.array([[2.0], [10.0]]), jnp.array([[1.0, 2.0, 3.0, 4.0]]), blocks=2))
      [[ 2.  4. 30. 40.]]
    """
    # the weights are transposed and not x, which is larger
    return (jnp.swapaxes(weights, -1, -2)[..., None] * _cut_columns(x, blocks)).reshape(x.shape)


def _cut_columns(x, blocks):
    return x.reshape(*x.shape[:-1], blocks, x.shape[-1] // blocks)


def over_leading(product: Callable[[Array, Array], Array], x: Array, y: Array) -> Array:
    """Broadcasts the leading axes of two matrices, drops those of size 1, then calls ``product``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.ops import over_leading
      >>> over_leading(jnp.matmul, jnp.ones((5, 1, 3, 2)), jnp.ones((4, 2, 7))).shape
      (5, 4, 3, 7)
    """
    leading = jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    kept = tuple(size for size in leading if size != 1)
    x, y = (jnp.broadcast_to(u, leading + u.shape[-2:]).reshape(*kept, *u.shape[-2:]) for u in (x, y))
    result = product(x, y)
    return result.reshape(*leading, *result.shape[-2:])


def _inner_products(x, y):
    leading = tuple(range(x.ndim - 2))
    dimensions = ((x.ndim - 1,), (x.ndim - 1,)), (leading, leading)
    return _in_one_type(lambda x, y: jax.lax.dot_general(x, y, dimensions), x, y)


def _outer_products(x, y):
    leading = tuple(range(x.ndim - 2))
    dimensions = ((x.ndim - 2,), (x.ndim - 2,)), (leading, leading)
    return _in_one_type(lambda x, y: jax.lax.dot_general(x, y, dimensions), x, y)


def _in_one_type(product, x, y):
    if jnp.bfloat16 not in (x.dtype, y.dtype):
        return product(x, y)
    wide = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    if is_in_kernel():  # Mosaic adds in float32 only, and so must the transposes of these products
        x, y = x.astype(wide), y.astype(wide)
    return product(x, y).astype(wide)
