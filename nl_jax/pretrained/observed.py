"""A linear map whose backward pass also sums the products of its inputs, the covariance that a preconditioner needs."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.modules.layers import Linear


@jax.custom_vjp
def observed_matmul(
    x: Float[Array, "... in"],
    kernel: Float[Array, "in out"],
    products: Float[Array, "in in"],
    count: Float[Array, ""],
    inverse: Float[Array, ""],
) -> Float[Array, "... out"]:
    """``x @ kernel``. The cotangent of ``products`` is the sum of x xᵀ over the inputs that the loss depends on.

    The cotangent of ``count`` is their number, and that of ``inverse`` the sum of 1 / ‖x‖².
    Those are the inputs whose output has a cotangent other than zero: padding after the last target does not count.
    The cotangents of x and the kernel are the usual ones. It supports reverse-mode differentiation only.

    Args:
      x: inputs.
      kernel: weights.
      products, count, inverse: zeros.
    """
    del products, count, inverse
    return x @ kernel


def _forward(x, kernel, products, count, inverse):
    del inverse
    return x @ kernel, (x, kernel, products, count)


def _backward(residuals, cotangent):
    x, kernel, products, count = residuals
    rows, error = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    counts = jnp.any(error != 0, axis=-1, keepdims=True)
    seen = jnp.where(counts, rows, 0).astype(products.dtype)
    for_kernel = jnp.matmul(rows.T, error, preferred_element_type=kernel.dtype)
    for_x = (cotangent @ kernel.T).astype(x.dtype)
    squared = jnp.sum(seen * seen, axis=-1)
    inverse = jnp.sum(jnp.where(squared > 0, 1 / jnp.where(squared > 0, squared, 1.0), 0.0)).astype(count.dtype)
    return for_x, for_kernel.astype(kernel.dtype), seen.T @ seen, jnp.sum(counts, dtype=count.dtype), inverse


observed_matmul.defvjp(_forward, _backward)


class Observed(nnx.Module):
    """A linear layer that computes by `observed_matmul`.

    Args:
      layer: the layer, whose weights it shares; all leaves may have leading axes of blocks.
      seen: zeros (products, count, inverse), whose gradients will be those of `observed_matmul`.
    """

    def __init__(self, layer: Linear, *seen: Float[Array, "..."]):
        self.kernel, self.bias = layer.kernel, layer.bias
        self.products, self.count, self.inverse = map(nnx.Param, seen)

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """Maps every vector."""
        y = observed_matmul(x, self.kernel[...], self.products[...], self.count[...], self.inverse[...])
        return y if self.bias is None else y + self.bias[...]
