"""Causal softmax attention with rotary positions (Eq. 62): the non-parametric memory, whose state is its context."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.modules.layers import linear


class AttentionState(NamedTuple):
    """Keys and values of the last ``context_length`` tokens, the newest last, and how many tokens there were."""

    keys: Float[Array, "batch context heads head_dim"]
    values: Float[Array, "batch context heads head_dim"]
    position: Int[Array, ""]


def rotary(
    x: Float[Array, "batch time heads head_dim"], positions: Int[Array, " time"]
) -> Float[Array, "batch time heads head_dim"]:
    """Rotary position embedding (Su et al., 2021), base 10,000, first half of the channels paired with the second."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-jnp.arange(half) / half)
    angle = positions[:, None, None] * frequency
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Attention(nnx.Module):
    """Multi-head causal softmax attention with RoPE.

    Args:
      width: of input and output.
      num_heads: must divide width into an even head size.
      context_length: tokens that the state remembers, and the most that one call may bring beside a state.
    """

    def __init__(self, width: int, num_heads: int, *, context_length: int, output_scale: float = 1.0, rngs: nnx.Rngs):
        if width % (2 * num_heads):
            raise ValueError(f"num_heads={num_heads} must divide width={width} into even head sizes")
        if context_length < 1:
            raise ValueError(f"context_length={context_length} must be at least 1")
        self.num_heads = num_heads
        self.context_length = context_length
        self.query = linear(width, width, rngs=rngs)
        self.key = linear(width, width, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)
        self.output = linear(width, width, scale=output_scale, rngs=rngs)

    def init_state(self, batch_size: int) -> AttentionState:
        """No tokens yet."""
        head_dim = self.query.out_features // self.num_heads
        empty = jnp.zeros((batch_size, self.context_length, self.num_heads, head_dim))
        return AttentionState(empty, empty, jnp.zeros((), jnp.int32))

    def __call__(
        self, x: Float[Array, "batch time width"], state: AttentionState | None = None
    ) -> tuple[Float[Array, "batch time width"], AttentionState]:
        """Attends to the tokens up to and including each; ``state=None`` starts a text."""
        batch, time, width = x.shape
        if time > self.context_length:
            raise ValueError(f"{time} tokens in one call are more than context_length={self.context_length}")
        heads = (batch, time, self.num_heads, width // self.num_heads)
        start = jnp.zeros((), jnp.int32) if state is None else state.position
        positions = start + jnp.arange(time)
        query = rotary(self.query(x).reshape(heads), positions)
        key = rotary(self.key(x).reshape(heads), positions)
        value = self.value(x).reshape(heads)
        if state is None:
            y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
            empty = self.init_state(batch)
            keys, values = (jnp.concatenate([e, n], axis=1) for e, n in ((empty.keys, key), (empty.values, value)))
        else:
            keys = jnp.concatenate([state.keys.astype(key.dtype), key], axis=1)
            values = jnp.concatenate([state.values.astype(value.dtype), value], axis=1)
            # cache slot j holds the token at position start - context + j, empty where that is negative
            place = start - self.context_length + jnp.arange(keys.shape[1])
            distance = positions[:, None] - place
            seen = (place >= 0) & (distance >= 0) & (distance < self.context_length)
            y = jax.nn.dot_product_attention(query, keys, values, mask=seen[None, None])
        state = AttentionState(keys[:, time:], values[:, time:], start + time)
        return self.output(y.reshape(batch, time, width)), state
