"""Causal softmax attention with rotary positions (Eq. 62-63): the non-parametric memory, whose state is its context."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.memory.guards import LARGEST_TOKEN, limit_norm
from nl_jax.modules.layers import CausalConv, linear, start_as_induction
from nl_jax.modules.mixers.rotary import BASE, rotary, rotary_at, rotary_frequencies
from nl_jax.ops import causal_attention, fits_splash, splash_attention
from nl_jax.parallel.kernels import choose_backend, over_heads
from nl_jax.parallel.sequence import Shard


class AttentionState(NamedTuple):
    """Keys and values of the last ``context_length`` tokens, the newest last, before the rotary embedding.

    With a convolution also its last three inputs, ``conv``. Its sizes and types never change.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.modules import Attention
      >>> state = Attention(8, 4, context_length=16, num_kv_heads=2, rngs=nnx.Rngs(0)).init_state(1)
      >>> state.keys.shape, state.conv is None
      ((1, 16, 2, 2), True)
    """

    keys: Float[Array, "batch context kv_heads head_dim"]
    values: Float[Array, "batch context kv_heads head_dim"]
    position: Int[Array, ""]  # how many of the keys hold a token: it stops growing at the context's length
    conv: Float[Array, "batch 3 channels"] | None = None


class RotatedState(NamedTuple):
    """What decoding keeps of a text that fits into the context: keys after the rotary embedding, the oldest first.

    Nothing is moved or rotated again when a token is added, so that a token costs one reading of the keys. Layers of a
    model stand on a leading axis.
    """

    keys: Float[Array, "*layers batch context kv_heads head_dim"]
    values: Float[Array, "*layers batch context kv_heads head_dim"]
    position: Int[Array, "*layers"]  # tokens so far, which must stay below the context's length

    def grown(self, own: "RotatedState") -> "RotatedState":
        """The state of all layers with one more token, whose keys and values each layer's `Attention` has returned."""
        at = (0, 0, self.position[0], 0, 0)
        keys, values = (
            jax.lax.dynamic_update_slice(before, new.astype(before.dtype), at)
            for before, new in ((self.keys, own.keys), (self.values, own.values))
        )
        return RotatedState(keys, values, self.position + 1)


class Attention(nnx.Module):
    """Multi-head causal softmax attention with RoPE over the last ``context_length`` tokens.

    On longer texts that is sliding-window attention (Eq. 63 of arXiv 2512.24695), on others attention to all (Eq. 62).
    A token whose vector is longer than a million is scaled down to that length, which keeps gradients finite.

    Args:
      width: of input and output.
      num_heads: number of query heads; must divide width into an even head size where ``head_dim`` is not given.
      context_length: tokens that each token sees, itself included, and that the state remembers.
      convolution: a causal convolution of queries, keys and values before RoPE, as self-modifying Titans have.
      num_kv_heads: number of key and value heads, each shared by ``num_heads // num_kv_heads`` query heads
        (grouped-query attention: Ainslie et al., 2023); None for as many as query heads.
      head_dim: size of a head; None for ``width // num_heads``.
      bias: biases of queries, keys and values, which start at 0 (Qwen2).
      qk_norm: a root mean square norm with a learned scale of each head's query and key, before RoPE (Qwen3).
      norm_epsilon: of these norms.
      rope_base: base of the rotary frequencies.
      rope_scaling: (name, value) pairs as for `rotary_frequencies`; none leave the frequencies as they are.
      use_rope: whether queries and keys are rotated; without that the causal mask alone says where tokens stand.

    Raises:
      ValueError: for sizes that do not fit each other, or an unknown scaling.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import Attention
      >>> attention = Attention(8, 2, context_length=4, rngs=nnx.Rngs(0))
      >>> y, state = jax.eval_shape(attention, jnp.ones((1, 6, 8)))
      >>> y.shape, state.keys.shape  # the state remembers the last 4 tokens
      ((1, 6, 8), (1, 4, 2, 4))
    """

    attend = staticmethod(causal_attention)  # replaced to compare speeds (experiments)
    kernel = "xla"  # which program answers a whole text (``choose_kernel``); others have one derivative only
    has_kernel = True

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        context_length: int,
        convolution: bool = False,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        qk_norm: bool = False,
        norm_epsilon: float = 1e-6,
        rope_base: float = BASE,
        rope_scaling: Sequence[tuple[str, Any]] = (),
        use_rope: bool = True,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if head_dim is None and (num_heads < 1 or width % (2 * num_heads)):
            raise ValueError(f"num_heads={num_heads}: expected a divisor of width={width} that leaves even head sizes")
        self.head_dim = width // num_heads if head_dim is None else head_dim
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim={head_dim}: expected an even number of at least 2")
        if context_length < 1:
            raise ValueError(f"context_length={context_length}: expected at least 1")
        self.num_heads, self.num_kv_heads = num_heads, num_heads if num_kv_heads is None else num_kv_heads
        if self.num_kv_heads < 1 or num_heads < 1 or num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads={num_kv_heads}: expected a divisor of num_heads={num_heads}")
        if convolution and self.num_kv_heads != num_heads:
            raise ValueError(f"num_kv_heads={num_kv_heads}: a convolution needs as many as num_heads={num_heads}")
        self.context_length = context_length
        frequencies = rotary_frequencies(self.head_dim // 2, rope_base, dict(rope_scaling))
        self.frequencies = tuple((use_rope * frequencies).tolist())
        queries, keys = (heads * self.head_dim for heads in (num_heads, self.num_kv_heads))
        start = 0.0 if bias else None
        self.query = linear(width, queries, bias=start, rngs=rngs)
        self.key = linear(width, keys, bias=start, rngs=rngs)
        self.value = linear(width, keys, bias=start, rngs=rngs)
        self.query_norm, self.key_norm = (
            nnx.RMSNorm(self.head_dim, epsilon=norm_epsilon, rngs=rngs) if qk_norm else None for _ in range(2)
        )
        self.conv = CausalConv(3 * queries, rngs=rngs) if convolution else None
        if self.conv is not None:
            start_as_induction(self.query, self.key, self.conv)
        self.output = linear(queries, width, scale=output_scale, rngs=rngs)

    def init_state(self, batch_size: int) -> AttentionState:
        """No tokens yet; keys and values are kept in the parameters' type."""
        dtype = self.key.kernel[...].dtype
        shape = (batch_size, self.context_length, self.num_kv_heads, self.head_dim)
        conv = None if self.conv is None else self.conv.init_state(batch_size).astype(dtype)
        return AttentionState(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32), conv)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        state: AttentionState | RotatedState | None = None,
        *,
        at_boundary: bool = False,
    ) -> tuple[Float[Array, "batch time width"], Any]:
        """Each token attends to the last ``context_length`` up to itself; ``state=None`` starts a text.

        With a `RotatedState` there is one token, and only its own keys and values are returned, for
        ``RotatedState.grown``.

        Attention has no chunks, so ``at_boundary`` says nothing to it. Any number of tokens in any calls gives
        the same outputs and state as one call, up to rounding. No tokens give no outputs, and the state as it was.
        """
        if isinstance(state, RotatedState):
            return self._read_token(x, state)
        batch, time, _ = x.shape
        fresh = state is None
        state = self.init_state(batch) if state is None else state
        if time == 0:
            return self.output(x), state
        query, key, value, conv = self._project(x, lambda projected: state.conv)
        keys = jnp.concatenate([state.keys.astype(key.dtype), key], axis=1)
        values = jnp.concatenate([state.values.astype(value.dtype), value], axis=1)
        if fresh:
            query, key = (rotary(u, 0, self.frequencies) for u in (query, key))
            y = self._attend(query, key, value)
        else:
            y = self._attend_after(query, keys, values, self._held(state))
        held = jnp.minimum(self._held(state) + time, self.context_length)
        new = AttentionState(keys[:, time:], values[:, time:], held, conv)
        new = jax.tree.map(lambda u, before: u.astype(before.dtype), new, state)
        return self.output(y.reshape(*x.shape[:2], self.num_heads * self.head_dim)), new

    def rotated_state(self, state: AttentionState) -> RotatedState:
        """The same state for decoding, of a text that leaves room for the tokens that follow.

        Raises:
          ValueError: with a convolution, which `RotatedState` has no place for.
        """
        if self.conv is not None:
            raise ValueError("attention with a convolution cannot decode from rotated keys")
        held = self._held(state)
        keys, values = (jnp.roll(u, held, axis=1) for u in (state.keys, state.values))  # the empty places to the end
        return RotatedState(rotary(keys, 0, self.frequencies), values, held)

    def _read_token(self, x: Float[Array, "batch 1 width"], state: RotatedState) -> tuple[Array, RotatedState]:
        """The answer to one token, and its own keys and values."""
        query, key, value, _ = self._project(x, lambda projected: None)
        length = state.keys.shape[1]
        query, key = (rotary_at(u, state.position, self.frequencies, positions=length) for u in (query, key))
        shape = (len(x), self.num_kv_heads, self.num_heads // self.num_kv_heads, self.head_dim)
        query = (query * self.head_dim**-0.5).reshape(shape)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        before = jnp.einsum("bgrd,bkgd->bgrk", query, state.keys.astype(query.dtype), preferred_element_type=wide)
        before = jnp.where(jnp.arange(length) < state.position, before, -jnp.inf)
        own = jnp.einsum("bgrd,bkgd->bgrk", query, key, preferred_element_type=wide)
        shares = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1).astype(value.dtype)
        y = jnp.einsum("bgrk,bkgd->bgrd", shares[..., :-1], state.values.astype(value.dtype))
        y = y + jnp.einsum("bgrk,bkgd->bgrd", shares[..., -1:], value)
        return self.output(y.reshape(len(x), 1, -1)), RotatedState(key, value, state.position)

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
        return self.output(y.reshape(*x.shape[:2], self.num_heads * self.head_dim)), (key, value), conv

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
        x = limit_norm(x, LARGEST_TOKEN, -1)
        parts, conv = [self.query(x), self.key(x), self.value(x)], None
        if self.conv is not None:
            projected = jnp.concatenate(parts, axis=-1)
            projected, conv = self.conv(projected, before(projected))
            parts = jnp.split(projected, 3, axis=-1)
        query, key, value = (u.reshape(*u.shape[:2], u.shape[2] // self.head_dim, self.head_dim) for u in parts)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = (norm(u).astype(u.dtype) for norm, u in ((self.query_norm, query), (self.key_norm, key)))
        return query, key, value, conv

    def _attend(self, query: Array, key: Array, value: Array, empty: Int[Array, ""] | None = None) -> Array:
        """Answers to the queries of a text's last tokens by all keys, of which the first ``empty`` hold no token."""
        if self.attend is causal_attention:
            fits = fits_splash(query, key, value)
            asks = fits or empty is None  # a few tokens after a text, as in decoding, need no kernel
            # a GPU's kernel is cuDNN's, which causal_attention chooses
            backend = choose_backend(self.kernel, lambda backend: backend == "gpu" or fits) if asks else None
            if fits and backend in ("tpu", "interpret"):
                options: dict[str, Any] = {"window": self.context_length, "interpret": backend == "interpret"}
                heads_first = [jnp.swapaxes(u, 1, 2) for u in (query, key, value)]
                if empty is not None:
                    heads_first.append(jnp.broadcast_to(empty, heads_first[0].shape[:2]))
                y = over_heads(functools.partial(splash_attention, **options), *heads_first)
                return jnp.swapaxes(y, 1, 2)
        return self.attend(query, key, value, window=self.context_length, empty=empty)

    def _attend_after(self, query: Array, keys: Array, values: Array, position: Int[Array, ""]) -> Array:
        """Answers to queries whose keys come after ``context_length`` others, of which ``position`` hold a token."""
        # positions count from the first key that the state has room for, so that they stay small in a long text
        empty = jnp.maximum(self.context_length - position, 0)
        query, keys = rotary(query, self.context_length, self.frequencies), rotary(keys, 0, self.frequencies)
        return self._attend(query, keys, values, empty)
