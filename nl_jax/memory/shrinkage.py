"""Shrinkage: a memory forgets as much as its own loss asks for.

What a memory has learned may answer further tokens worse than a smaller part of it would: what it wrote of a text
without order is noise to whatever comes next. The loss of a token along the scale c of the last layer's change,
``ℓ(W₀ + c ΔW)``, has at c = 1 the slope ``⟨ΔW h, g⟩``, for the layer's input h and the gradient g at its output. When
a chunk of N tokens (times the window) ends, all layers shrink,

    ΔW ← ΔW exp(-λ max(0, 1/N Σ_t w_t e_t)),  e_t = ⟨ΔW h_t, g_t⟩ / (‖ΔW h_t‖² + ‖g_t‖² + ε),  w_t = η_t / (1 + η_t),

with the last layer's ΔW at the chunk's start in e_t: a step of gradient descent on log c, which never lets it grow.
Where answers are right or too small nothing is forgotten, and a token that is not written asks for nothing. The paper
has no such step.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SMALLEST = 1e-2  # ε: beside it a value has the length 1
STRENGTH = 4.0  # λ: one chunk forgets at most 1 - e^-2, and of random symbols about a quarter


def excess(
    answers: Float[Array, "... C out"], gradients: Float[Array, "... C out"], eta: Float[Array, "... C"]
) -> Float[Array, "... C"]:
    """``w_t e_t`` of each token: how much too large the answers of ΔW are; from -½ to ½, below zero if too small.

    Args:
      answers: ``ΔW h`` of the last layer.
      gradients: of the loss, at the layer's output.
      eta: learning rate, from 0.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import excess
      >>> answer, value = jnp.array([[2.0], [2.0]]), jnp.array([[4.0], [0.0]])
      >>> print(excess(answer, answer - value, jnp.ones(2)).round(2))  # the first is too small, the second too large
      [-0.25  0.25]
    """
    # both parts are divided by their largest element, so that squares do not overflow; it cancels
    largest = jnp.maximum(jnp.max(jnp.abs(answers), axis=-1), jnp.max(jnp.abs(gradients), axis=-1))
    largest = jax.lax.stop_gradient(jnp.clip(largest, 1.0, 1e30))  # 1 / 1e38 would be rounded to zero
    answers, gradients = answers / largest[..., None], gradients / largest[..., None]
    squares = jnp.sum(jnp.square(answers) + jnp.square(gradients), axis=-1) + SMALLEST / largest / largest
    return eta / (1.0 + eta) * jnp.sum(answers * gradients, axis=-1) / squares


def shrink(delta_w: tuple[Array, ...], mean: Float[Array, "*leading"]) -> tuple[Array, ...]:
    """The layers of ΔW after a chunk, from the mean ``excess`` of its tokens for each memory of a stack.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import shrink
      >>> first, last = shrink((jnp.ones((1, 6)), jnp.ones((2, 3, 1))), jnp.array([-0.3, 0.2]))  # two memories
      >>> print(first.round(2), last.round(2)[:, 0, 0])
      [[1.   1.   1.   0.45 0.45 0.45]] [1.   0.45]
    """
    factor = jnp.exp(-STRENGTH * jax.nn.relu(mean))
    if len(delta_w) == 1:
        return (delta_w[0] * factor[..., None, None],)
    stack, first = factor.shape[-1], delta_w[0]
    # the memories share the first layer, each with as many columns; kernels have no gather and no reshape for them
    owner = jax.lax.broadcasted_iota(jnp.int32, (1, first.shape[-1]), 1) // (first.shape[-1] // stack)
    columns = sum(jnp.where(owner == i, factor[..., i, None, None], 0.0) for i in range(stack))
    return (first * columns, *(w * factor[..., None, None] for w in delta_w[1:]))
