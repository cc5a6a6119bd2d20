"""Checks of what a language model is given to read."""

from typing import Any

import jax
import jax.numpy as jnp


def check_tokens(tokens: Any) -> None:
    """Raises ``ValueError`` unless ``tokens`` is an array of integers ``[batch, time]``.

    Ids are not compared with the vocabulary, since arrays may be traced.
    """
    if not hasattr(tokens, "shape"):
        raise ValueError(f"tokens is a {type(tokens).__name__}; expected an array of integers [batch, time]")
    if len(tokens.shape) != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        given = f"shape {tokens.shape} and type {tokens.dtype}"
        raise ValueError(f"tokens has {given}; expected an array of integers [batch, time]")


def check_like_tokens(tokens: Any, **others: Any) -> None:
    """Raises ``ValueError`` unless every other array that is not None has the shape of ``tokens``."""
    for name, value in others.items():
        if value is not None and jnp.shape(value) != tokens.shape:
            raise ValueError(f"{name} has shape {jnp.shape(value)}; expected that of tokens, {tokens.shape}")


def check_state(tokens: Any, state: Any) -> None:
    """Raises ``ValueError`` for the state of another number of texts; its arrays are ``[layers, batch, ...]``."""
    sizes = {leaf.shape[1] for leaf in jax.tree.leaves(state) if jnp.ndim(leaf) > 2}
    if len(sizes) == 1 and len(tokens) not in sizes:
        raise ValueError(f"state is of {sizes.pop()} texts; expected that of {len(tokens)}, as tokens are")
