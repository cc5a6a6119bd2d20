"""Newton-Schulz orthogonalisation of matrices, using Muon of optax."""

import functools
import math

import jax
import optax
from jaxtyping import Array, Float


@functools.partial(jax.jit, static_argnames=("steps", "dimensions"), inline=True)  # compiled once, without jit too
def newton_schulz(
    x: Float[Array, "..."], steps: int = 5, dimensions: optax.contrib.MuonDimensionNumbers | None = None
) -> Float[Array, "..."]:
    """Orthogonalises matrices approximately: moves their singular values to about 1 (Eq. 42-44).

    Args:
      x: a matrix [in, out] or a stack of independent matrices [..., in, out]. Zero stays zero.
      steps: number of iterations of Muon's quintic polynomial.
      dimensions: the axes that form the matrix, as tuples; all other axes are stacks. By default the last two.

    Returns:
      An array with the shape of x.

    Raises:
      ValueError: if x is a vector or a scalar.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nl_jax.optim import newton_schulz
      >>> values = jnp.linalg.svd(newton_schulz(jnp.diag(jnp.array([0.3, 1.0, 2.0]))), compute_uv=False)
      >>> bool((values > 0.6).all() and (values < 1.3).all())
      True
    """
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}; Newton-Schulz needs two axes or more")
    if dimensions is None:
        return _orthogonalize(x, steps)
    inputs, outputs = ([axis % x.ndim for axis in group] for group in dimensions)
    stack = [axis for axis in range(x.ndim) if axis not in (*inputs, *outputs)]
    order = (*stack, *inputs, *outputs)
    moved = x.transpose(order)
    sizes = (math.prod(x.shape[axis] for axis in group) for group in (inputs, outputs))
    matrices = moved.reshape(*moved.shape[: len(stack)], *sizes)
    back = sorted(range(x.ndim), key=order.__getitem__)
    return _orthogonalize(matrices, steps).reshape(moved.shape).transpose(back)


def _orthogonalize(x: Float[Array, "... in out"], steps: int) -> Float[Array, "... in out"]:
    # The longer axis is the input: optax 0.2.6 scales matrices with more outputs than inputs by their shape.
    longer, shorter = (-1, -2) if x.shape[-2] < x.shape[-1] else (-2, -1)
    # Muon with beta = 0 is its Newton-Schulz iteration alone; every version of optax has this public name.
    muon = optax.contrib.scale_by_muon(
        ns_steps=steps,
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(longer, shorter),
    )
    return muon.update(x, muon.init(x))[0]
