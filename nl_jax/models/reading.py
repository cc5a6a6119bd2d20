"""One way to read a text, whether or not a model learns in context: what scores a model calls `read`."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nl_jax.models.in_context import initial_state, read_and_learn


def read(
    model: Any,
    tokens: Int[Array, "batch time"],
    state: Any = None,
    *,
    targets: Int[Array, "batch time"] | None = None,
    mask: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time vocab"], Any]:
    """Logits of the token after each, and the state after the last.

    A model whose continuum memory learns in context learns from the targets of each chunk once it has read it; for any
    other model, targets and mask change nothing.

    Args:
      model: a language model, or whatever is called as ``logits, state = model(tokens, state)``.
      tokens: for a model that learns in context a multiple of its shortest period long.
      state: what the call before returned, or `start`; None starts a text.
      targets: what to learn from; by default the tokens that follow, and nothing at the last position.
      mask: 1 where a target counts; None for all.

    Raises:
      ValueError: for a length that does not fit the periods.
    """
    if not learns_in_context(model):
        return model(tokens, state)
    if targets is None:
        targets = jnp.roll(tokens, -1, axis=1)
        known = jnp.ones(tokens.shape).at[:, -1].set(0.0)
        mask = known if mask is None else mask * known
    return read_and_learn(model, tokens, targets, mask, state)


def start(model: Any, batch_size: int) -> Any:
    """The state of `read` before a text."""
    return initial_state(model, batch_size) if learns_in_context(model) else model.init_state(batch_size)


def learns_in_context(model: Any) -> bool:
    """Whether a model's continuum memory learns from what it reads."""
    return getattr(model, "learns_in_context", False)
