"""Sampling from a language model, token by token, its state carried along."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nl_jax.models.language_model import LanguageModel


@jax.jit
def next_token(
    model: LanguageModel, tokens: Int[Array, "1 T"], state: Any, key: Array, temperature: Float[Array, ""]
) -> tuple[Int[Array, "1 1"], Any]:
    """Reads `tokens` on from `state` (None at the start of a text) and samples the one after them."""
    logits, state = model(tokens, state)
    last = logits[:, -1].astype(jnp.float32)
    sampled = jax.random.categorical(key, last / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, sampled, last.argmax(-1))[:, None], state
