"""The scan of mixers whose tokens must be read one after the other, since no closed form is known."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.memory import limit_cotangent

# (state, inputs of one token, [batch, ...]) -> state, outputs
Step = Callable[[Any, Any], tuple[Any, Any]]


def read_tokens(step: Step, state: Any, inputs: Any, chunk_size: int) -> tuple[Any, Any]:
    """Applies ``step`` to one token after the other; the backward pass keeps one state per chunk, and recomputes.

    Cotangents of the state are limited at every token (``limit_cotangent``).

    Args:
      step: of one token.
      state: before the first token.
      inputs: of all tokens, at least one, with time as axis 1 of every array.
      chunk_size: tokens between two states that the backward pass keeps.

    Returns:
      The state after the last token, and the outputs with time as axis 1.
    """

    def token(state, inputs):
        return step(limit_cotangent(state), inputs)

    time = jax.tree.leaves(inputs)[0].shape[1]
    size = min(chunk_size, time)
    inputs = jax.tree.map(lambda u: jnp.moveaxis(u, 1, 0), inputs)
    if time <= size:
        state, outputs = jax.lax.scan(token, state, inputs)
    else:
        whole = time // size * size
        cut = jax.tree.map(lambda u: u[:whole].reshape(time // size, size, *u.shape[1:]), inputs)
        chunk = jax.checkpoint(lambda state, inputs: jax.lax.scan(token, state, inputs))
        state, outputs = jax.lax.scan(chunk, state, cut)
        outputs = jax.tree.map(lambda u: u.reshape(whole, *u.shape[2:]), outputs)
        if whole < time:
            state, rest = chunk(state, jax.tree.map(lambda u: u[whole:], inputs))
            outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, rest)
    return state, jax.tree.map(lambda u: jnp.moveaxis(u, 0, 1), outputs)
