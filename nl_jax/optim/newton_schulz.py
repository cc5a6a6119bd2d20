"""Newton-Schulz orthogonalisation of matrices, by optax's Muon."""

import functools
import math

import jax
import optax
from jaxtyping import Array, Float


@functools.partial(jax.jit, static_argnames=("steps", "dimensions"), inline=True)  # compiled once, also without jit
def newton_schulz(
    x: Float[Array, "..."], steps: int = 5, dimensions: optax.contrib.MuonDimensionNumbers | None = None
) -> Float[Array, "..."]:
    """Every matrix with its singular values moved to about 1 (Eq. 42-44); leading axes are independent matrices.

    Args:
      x: matrices [..., in, out], or stacks of them. Zero stays zero.
      steps: iterations of Muon's quintic.
      dimensions: which axes form the matrix, with tuples of axes; all others are stacks. By default the last two.

    Returns:
      An array of x's shape.

    Raises:
      ValueError: for a vector or scalar.
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
    # The longer axis counts as input: optax 0.2.6 scales matrices that are wider than that by their shape.
    longer, shorter = (-1, -2) if x.shape[-2] < x.shape[-1] else (-2, -1)
    # Without memory (beta 0), Muon is its Newton-Schulz: the public way to it in every version of optax.
    muon = optax.contrib.scale_by_muon(
        ns_steps=steps,
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(longer, shorter),
    )
    return muon.update(x, muon.init(x))[0]
