"""Causal softmax attention with rotary positions (Eq. 62-63): the non-parametric memory, whose state is its context."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.modules.layers import CausalConv, linear, start_as_induction
from nl_jax.ops import blockwise_attention
from nl_jax.parallel.sequence import Shard


class AttentionState(NamedTuple):
    """Keys and values of the last ``context_length`` tokens, the newest last, before the rotary embedding.

    With a convolution also its last three inputs, ``conv``. Its sizes and types never change.
    """

    keys: Float[Array, "batch context heads head_dim"]
    values: Float[Array, "batch context heads head_dim"]
    position: Int[Array, ""]  # how many of the keys hold a token: it stops growing at the context's length
    conv: Float[Array, "batch 3 channels"] | None = None


def rotary(x: Float[Array, "batch time heads head_dim"], start: int = 0) -> Float[Array, "batch time heads head_dim"]:
    """Rotary position embedding (Su et al., 2021), base 10,000, first half of the channels paired with the second.

    Args:
      x: of tokens that follow each other.
      start: position of the first; attention depends on differences of positions only.
    """
    half = x.shape[-1] // 2
    cos, sin = (table[start:, None] for table in _angles(start + x.shape[1], half, x.dtype))
    first, second = x[..., :half].astype(cos.dtype), x[..., half:].astype(cos.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _angles(length: int, half: int, dtype: Any) -> tuple[Float[Array, "length half"], Float[Array, "length half"]]:
    """Cosine and sine of every position's angles, in float32 at least.

    A position is a multiple of ``size`` and a rest. Both have small tables, exact to the last digit however large the
    position is, and the angle-addition formulas join them.
    """
    size = int(np.ceil(np.sqrt(length)))
    frequency = 10_000.0 ** (-np.arange(half) / half)
    coarse, fine = (np.arange(size)[:, None] * (step * frequency) for step in (size, 1))
    wide = jnp.promote_types(dtype, jnp.float32)
    tables = [jnp.asarray(f(angles), wide) for angles in (coarse, fine) for f in (np.cos, np.sin)]
    # the barrier keeps XLA from folding the joined table into a constant of the program
    cos_coarse, sin_coarse, cos_fine, sin_fine = jax.lax.optimization_barrier(tables)
    cos_coarse, sin_coarse = cos_coarse[:, None], sin_coarse[:, None]
    cos = cos_coarse * cos_fine - sin_coarse * sin_fine
    sin = sin_coarse * cos_fine + cos_coarse * sin_fine
    return cos.reshape(-1, half)[:length], sin.reshape(-1, half)[:length]


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
        """No tokens yet; keys and values are kept in the parameters' type."""
        dtype = self.key.kernel[...].dtype
        shape = (batch_size, self.context_length, self.num_heads, self.query.out_features // self.num_heads)
        conv = None if self.conv is None else self.conv.init_state(batch_size).astype(dtype)
        return AttentionState(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32), conv)

    def __call__(
        self, x: Float[Array, "batch time width"], state: AttentionState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], AttentionState]:
        """Each token attends to the last ``context_length`` up to itself; ``state=None`` starts a text.

        Attention has no chunks, so ``at_boundary`` says nothing to it. Any number of tokens in any calls gives
        the same outputs and state as one call, up to rounding. No tokens give no outputs, and the state as it was.
        """
        batch, time, _ = x.shape
        fresh = state is None
        state = self.init_state(batch) if state is None else state
        if time == 0:
            return self.output(x), state
        query, key, value, conv = self._project(x, lambda projected: state.conv)
        keys = jnp.concatenate([state.keys.astype(key.dtype), key], axis=1)
        values = jnp.concatenate([state.values.astype(value.dtype), value], axis=1)
        if fresh:
            y = self.attend(rotary(query), rotary(key), value, window=self.context_length)
        else:
            y = self._attend_after(query, keys, values, self._held(state))
        held = jnp.minimum(self._held(state) + time, self.context_length)
        new = AttentionState(keys[:, time:], values[:, time:], held, conv)
        new = jax.tree.map(lambda u, before: u.astype(before.dtype), new, state)
        return self.output(y.reshape(x.shape)), new

    def read_shard(
        self, x: Float[Array, "batch time width"], state: AttentionState | None, shard: Shard
    ) -> tuple[Float[Array, "batch time width"], tuple[Array, Array], Array | None]:
        """Output for one device's tokens of a text; ``state`` is before the first token of the whole text.

        Returns also what `state_after` needs: keys and values of these tokens, and the convolution's last inputs. A
        device holds ``context_length`` keys and values while it reads a layer.
        """
        state = self.init_state(len(x)) if state is None else state
        inputs: Any = state.conv  # None without a convolution
        query, key, value, conv = self._project(x, lambda projected: shard.before(inputs, projected))
        keys = jnp.concatenate([shard.before(state.keys, key), key], axis=1)
        values = jnp.concatenate([shard.before(state.values, value), value], axis=1)
        y = self._attend_after(query, keys, values, self._held(state) + shard.index * x.shape[1])
        conv = None if conv is None else conv.astype(inputs.dtype)
        return self.output(y.reshape(x.shape)), (key, value), conv

    def state_after(self, state: AttentionState | None, own: tuple[Array, Array], conv: Array | None) -> AttentionState:
        """The state after a text that `read_shard` has read, from keys and values of all its tokens."""
        batch, time = own[0].shape[:2]
        state = self.init_state(batch) if state is None else state
        keys, values = (
            jnp.concatenate([before[:, time:], after[:, -self.context_length :].astype(before.dtype)], axis=1)
            for before, after in zip((state.keys, state.values), own, strict=True)
        )
        return AttentionState(keys, values, jnp.minimum(self._held(state) + time, self.context_length), conv)

    def _held(self, state: AttentionState) -> Int[Array, ""]:
        """How many keys of a state hold a token; limited before anything is added, which could overflow."""
        return jnp.minimum(state.position, self.context_length)

    def _project(self, x: Float[Array, "batch time width"], before: Callable[[Array], Any]) -> tuple[Any, ...]:
        """Queries, keys and values of each head, and the convolution's last inputs, if there is one.

        ``before`` gives the convolution's inputs before those that it is called with.
        """
        parts, conv = [self.query(x), self.key(x), self.value(x)], None
        if self.conv is not None:
            projected = jnp.concatenate(parts, axis=-1)
            projected, conv = self.conv(projected, before(projected))
            parts = jnp.split(projected, 3, axis=-1)
        heads = (*x.shape[:2], self.num_heads, x.shape[-1] // self.num_heads)
        return *(u.reshape(heads) for u in parts), conv

    def _attend_after(self, query: Array, keys: Array, values: Array, position: Int[Array, ""]) -> Array:
        """Answers to queries whose keys come after ``context_length`` others, of which ``position`` hold a token."""
        # positions count from the first key that the state has room for, so that they stay small in a long text
        query, empty = rotary(query, self.context_length), jnp.maximum(self.context_length - position, 0)
        return self.attend(query, rotary(keys), values, window=self.context_length, empty=empty)
