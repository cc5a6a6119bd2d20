"""Limits that keep states and gradients finite where a learning rule alone does not.

The rules "implicit" and "normalized" keep every state bounded by construction (``rules.py``). Two quantities
have no bound of their own. The rule that the paper prints is unstable for large steps: its error can double at every
chunk. And the exact gradient through many chunks can grow without bound although no state does, since a memory that
makes its own keys and rates is a nonlinear dynamical system. So both have a limit, which no working memory reaches.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

LARGEST_STATE = 1e3  # Frobenius norm of one layer's change, and of its momentum; working memories stay below 100
LARGEST_FORCING = 1e2  # length of what one token writes; about 1 in a working memory
LARGEST_COTANGENT = 1e6  # of each element of a state; in training they are below 1
LARGEST_TOKEN = 1e6  # length of a token that attention reads, whose gradients grow with its fourth power
LARGEST_RATE = 1e6  # of η; larger ones hardly lengthen an implicit step


def limit_norm(x: Float[Array, "..."], limit: float, axis: int | tuple[int, ...]) -> Float[Array, "..."]:
    """Scales vectors whose L2 norm over ``axis`` exceeds ``limit`` down to it; others are returned as they are.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import limit_norm
      >>> print(limit_norm(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 1.0, -1))  # the second is short enough
      [[0.6 0.8]
       [0.3 0.4]]
    """
    # dividing by the largest element keeps the squares from overflowing; it cancels, so it needs no gradient
    largest = jnp.maximum(jnp.max(jnp.abs(x), axis=axis, keepdims=True), limit)
    largest = jax.lax.stop_gradient(largest)
    square = jnp.sum(jnp.square(x / largest), axis=axis, keepdims=True)
    return x * (limit / largest) * jax.lax.rsqrt(jnp.maximum(square, 1.0))


def limit_cotangent(tree: Any) -> Any:
    """The same arrays; in a backward pass each element of their cotangents is cut to ±``LARGEST_COTANGENT``.

    Forward-mode derivatives are those of the identity. A cotangent that is infinite becomes finite, too; a NaN stays.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nl_jax.memory import limit_cotangent
      >>> loss = lambda x: jnp.sum(jnp.array([1.0, jnp.inf]) * limit_cotangent(x))
      >>> bool(jnp.isfinite(jax.grad(loss)(jnp.zeros(2))).all())
      True
    """
    return jax.tree.map(_limit.bind, tree)


_limit = Primitive("limit_cotangent")
_limit.def_impl(lambda x: x)
_limit.def_abstract_eval(lambda x: x)
mlir.register_lowering(_limit, mlir.lower_fun(lambda x: x, multiple_results=False))
batching.defvectorized(_limit)
ad.deflinear2(
    _limit,
    lambda cotangent, _: [
        cotangent if isinstance(cotangent, ad.Zero) else jnp.clip(cotangent, -LARGEST_COTANGENT, LARGEST_COTANGENT)
    ],
)
