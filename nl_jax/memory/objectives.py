"""The objectives of memories: losses between the answer to a key and the value (Eq. 64-68 of arXiv 2512.24695).

An objective is given by the gradient of its loss at the answer, and by how much of it is linear in the answer.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Vectors = Float[Array, "... C out"]


class Objective(NamedTuple):
    """A loss L(answer; value), by its gradient.

    Attributes:
      gradient: ∂L/∂answer from (answer, value).
      linear: c, where the gradient is ``c · answer + (terms without the answer)``; None where it is not linear. The
        last layer of a memory folds a linear gradient into its delta term.
      curvature: an upper bound of the gradient's slope; scales the step of layers that cannot fold.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import Architecture, Objective, memory_of
      >>> half_l2 = Objective(lambda answer, value: answer - value, linear=1.0, curvature=1.0)
      >>> memory = memory_of(Architecture(4, 4), objective=half_l2, chunk_size=8)
      >>> memory.folds  # a linear gradient becomes part of the delta term
      True
    """

    gradient: Callable[[Vectors, Vectors], Vectors]
    linear: float | None
    curvature: float


dot_product = Objective(lambda answer, value: -value, linear=0.0, curvature=1.0)
"""L = -⟨answer, value⟩ (Eq. 64)."""
l2 = Objective(lambda answer, value: 2.0 * (answer - value), linear=2.0, curvature=2.0)
"""L = ‖answer - value‖² (Eq. 65)."""


def lp(p: float) -> Objective:
    """L = Σ |answer - value|^p for 1 < p ≤ 2: the smaller p, the less one outlier counts (Eq. 68).

    Raises:
      ValueError: for another p.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import lp
      >>> gradient = lp(1.5).gradient(jnp.array([4.0, 1.0]), jnp.zeros(2))
      >>> print(gradient.round(2))  # of an error that is four times as large twice as much
      [3.  1.5]
    """
    if not 1.0 < p <= 2.0:
        raise ValueError(f"p={p}: expected a number in (1, 2]")

    smoothing = 1e-4

    def gradient(answer: Vectors, value: Vectors) -> Vectors:
        # |e|^(p-1) has an infinite slope at 0: smoothed there, so that meta-gradients stay finite
        error = answer - value
        return p * error * (jnp.square(error) + smoothing) ** (p / 2 - 1)

    steepest = p * smoothing ** (p / 2 - 1)  # the gradient's slope at 0
    return Objective(gradient, linear=2.0 if p == 2.0 else None, curvature=steepest)


def huber(threshold: float) -> Objective:
    """L = ‖e‖² up to ``threshold`` in length and linear beyond, e = answer - value.

    Raises:
      ValueError: for a threshold that is not positive.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import huber
      >>> print(huber(0.5).gradient(jnp.array([0.1, 0.0]), jnp.zeros(2)))  # within the threshold, as L2
      [0.2 0. ]
    """
    if not threshold > 0.0:
        raise ValueError(f"threshold={threshold}: expected a positive number")

    def gradient(answer: Vectors, value: Vectors) -> Vectors:
        error = answer - value
        length = jnp.sqrt(jnp.sum(jnp.square(error), axis=-1, keepdims=True) + 1e-12)
        return 2.0 * error * jnp.minimum(1.0, threshold / length)

    return Objective(gradient, linear=None, curvature=2.0)


OBJECTIVES = {"dot_product": dot_product, "l2": l2, "lp": lp(1.5), "huber": huber(0.5)}
"""The objectives by name."""
