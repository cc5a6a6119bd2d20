"""Newton-Schulz orthogonalisation of the last two axes, by optax's Muon."""

import functools

import jax
import optax
from jaxtyping import Array, Float


@functools.partial(jax.jit, static_argnames="steps", inline=True)  # compiled once, also for callers without jit
def newton_schulz(x: Float[Array, "... in out"], steps: int = 5) -> Float[Array, "... in out"]:
    """Every matrix with its singular values moved to about 1 (Eq. 42-44); leading axes are independent matrices.

    Args:
      x: matrices, or stacks of them. Zero stays zero.
      steps: iterations of Muon's quintic.

    Raises:
      ValueError: for a vector or scalar.
    """
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}; Newton-Schulz needs two axes or more")
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
