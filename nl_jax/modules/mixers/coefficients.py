"""Learning rate, retention and momentum of each token and head: constants, or gates of the input."""

import math
import numbers
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.modules.layers import linear
from nl_jax.ops import matmul

RETENTION_BIAS = 8.0  # sigmoid: 0.9997, so that a memory keeps its state for some 3,000 tokens
# sigmoid: 0.27. With larger momentum a write arrives after the delta term has already compensated for it.
MOMENTUM_BIAS = -1.0
SIGNED = "hard_tanh"  # the activation of a retention from -1 to 1, both of which it reaches exactly


class Gate(nnx.Module):
    """A coefficient per token and head from the input: ``activation(x W + b)``, where b starts as a constant."""

    def __init__(self, width: int, num_heads: int, activation: str, bias: float, *, rngs: nnx.Rngs):
        self.activation = activation
        self.linear = linear(width, num_heads, bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time width"], dtype: Any) -> Float[Array, "batch heads time"]:
        """The coefficient, in ``dtype``."""
        assert self.linear.bias is not None
        # the bias is added in ``dtype``: next to 8, bfloat16 has multiples of 1/16 only
        product = matmul(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), self.linear.kernel[...]).astype(dtype)
        before = (product + self.linear.bias[...]).reshape(*x.shape[:-1], product.shape[-1])
        return jnp.moveaxis(getattr(jax.nn, self.activation)(before), 1, 2)


Coefficient = Gate | tuple[float, ...] | None  # a gate, a constant for each head, or nothing


def coefficient(name: str, given: Any, width: int, num_heads: int, rngs: nnx.Rngs) -> Coefficient:
    """A coefficient from a mixer's option.

    Args:
      name: "eta", "alpha" or "mu". The first may be any number from 0, the others end at 1.
      given: a number for a constant, a tuple of numbers for a constant of each head, (activation, bias) for a gate of
        the input with the activation "softplus" or "sigmoid", for alpha also "hard_tanh" (``is_signed``), or None for
        no coefficient.
      width, num_heads: sizes of the mixer.
      rngs: source of a gate's initial weights.

    Raises:
      ValueError: for anything else.
    """
    if given is None:
        return None
    if isinstance(given, tuple) and given and isinstance(given[0], str):
        activation, *bias = given
        known = ("softplus", "sigmoid", SIGNED) if name == "alpha" else ("softplus", "sigmoid")
        if activation not in known:
            raise ValueError(f"{name}={given!r}: expected the activation {' or '.join(map(repr, known))}")
        if len(bias) != 1 or not isinstance(bias[0], numbers.Real) or not math.isfinite(bias[0]):
            raise ValueError(f"{name}={given!r}: expected an activation followed by one bias, a finite number")
        return Gate(width, num_heads, *given, rngs=rngs)
    constants = given if isinstance(given, tuple) else (given,) * num_heads
    top = math.inf if name == "eta" else 1.0
    numeric = all(not isinstance(c, str) and jnp.ndim(c) == 0 and math.isfinite(c) for c in constants)
    if len(constants) != num_heads or not numeric or not all(0.0 <= c <= top for c in constants):
        expected = "at least 0" if name == "eta" else "from 0 to 1"
        raise ValueError(f"{name}={reprlib.repr(given)}: expected one finite number, or one per head, {expected}")
    return tuple(float(c) for c in constants)


def per_token(
    given: Coefficient, x: Float[Array, "batch time width"], dtype: Any
) -> Float[Array, "batch heads time"] | None:
    """The coefficient of every token, in ``dtype``; None where there is none."""
    if isinstance(given, tuple):
        return jnp.broadcast_to(jnp.asarray(given, dtype)[:, None], (len(x), len(given), x.shape[1]))
    return None if given is None else given(x, dtype)


def is_signed(alpha: Any) -> bool:
    """Whether an option makes a retention from -1 to 1, by which a memory without a delta term keeps a state exactly.

    At -1 a token turns all that was learned to its opposite, and at 1 it leaves it as it is, over any number of tokens:
    so a parity is kept, and a count. (Grazzi et al., 2025: a state needs negative eigenvalues.)
    """
    return isinstance(alpha, tuple) and alpha[:1] == (SIGNED,)
