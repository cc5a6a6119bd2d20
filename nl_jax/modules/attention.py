"""Causal softmax attention with rotary positions (Eq. 62-63): the non-parametric memory, whose state is its context."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.memory import blockwise_attention
from nl_jax.modules.layers import CausalConv, linear, start_as_induction


class AttentionState(NamedTuple):
    """Keys and values of the last ``context_length`` tokens, the newest last, and how many tokens there were.

    With a convolution also its last three inputs, ``conv``.
    """

    keys: Float[Array, "batch context heads head_dim"]
    values: Float[Array, "batch context heads head_dim"]
    position: Int[Array, ""]
    conv: Float[Array, "batch 3 channels"] | None = None


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
    """Multi-head causal softmax attention with RoPE over the last ``context_length`` tokens.

    On longer texts that is sliding-window attention (Eq. 63 of arXiv 2512.24695), on others attention to all (Eq. 62).

    Args:
      width: of input and output.
      num_heads: must divide width into an even head size.
      context_length: tokens that each token sees, itself included, and that the state remembers.
      convolution: a causal convolution of queries, keys and values before RoPE, as self-modifying Titans have.

    Raises:
      ValueError: for a head count that does not divide width into even head sizes, or a context length below 1.
    """

    attend = staticmethod(blockwise_attention)  # replaced to compare speeds (experiments)

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        context_length: int,
        convolution: bool = False,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if num_heads < 1 or width % (2 * num_heads):
            raise ValueError(f"num_heads={num_heads} must divide width={width} into even head sizes")
        if context_length < 1:
            raise ValueError(f"context_length={context_length} must be at least 1")
        self.num_heads = num_heads
        self.context_length = context_length
        self.query = linear(width, width, rngs=rngs)
        self.key = linear(width, width, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)
        self.conv = CausalConv(3 * width, rngs=rngs) if convolution else None
        if self.conv is not None:
            start_as_induction(self.query, self.key, self.conv)
        self.output = linear(width, width, scale=output_scale, rngs=rngs)

    def init_state(self, batch_size: int) -> AttentionState:
        """No tokens yet."""
        head_dim = self.query.out_features // self.num_heads
        empty = jnp.zeros((batch_size, self.context_length, self.num_heads, head_dim))
        conv = None if self.conv is None else self.conv.init_state(batch_size)
        return AttentionState(empty, empty, jnp.zeros((), jnp.int32), conv)

    def __call__(
        self, x: Float[Array, "batch time width"], state: AttentionState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], AttentionState]:
        """Each token attends to the last ``context_length`` up to itself; ``state=None`` starts a text.

        Attention has no chunks, so ``at_boundary`` says nothing to it. Any number of tokens in any calls gives
        the same outputs and state as one call, up to rounding.
        """
        batch, time, width = x.shape
        fresh = state is None
        state = self.init_state(batch) if state is None else state
        query, key, value = self.query(x), self.key(x), self.value(x)
        conv: Any = state.conv  # None without a convolution
        if self.conv is not None:
            projected, conv = self.conv(jnp.concatenate([query, key, value], axis=-1), conv)
            query, key, value = jnp.split(projected, 3, axis=-1)
        heads = (batch, time, self.num_heads, width // self.num_heads)
        positions = state.position + jnp.arange(time)
        query, key = rotary(query.reshape(heads), positions), rotary(key.reshape(heads), positions)
        value = value.reshape(heads)
        keys = jnp.concatenate([state.keys.astype(key.dtype), key], axis=1)
        values = jnp.concatenate([state.values.astype(value.dtype), value], axis=1)
        if fresh:
            y = self.attend(query, key, value, window=self.context_length)
        else:
            empty = self.context_length - state.position
            y = self.attend(query, keys, values, window=self.context_length, empty=empty)
        state = AttentionState(keys[:, time:], values[:, time:], state.position + time, conv)
        return self.output(y.reshape(batch, time, width)), state
