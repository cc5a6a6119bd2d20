"""Self-modifying Titans (§8.1-8.2): memories that make their own keys, values, learning rates, retention and targets.

Every head has five memories, residual two-layer MLPs ``M_□(x) = x + W1 σ(W2 x)`` (Eq. 89, 91), □ = key, eta, alpha,
value, memory. Per token (Eq. 83-88), with u_k, u_v, u_q unit-length slow projections of the input,

    k = M_key(u_k),  v = M_value(u_v),  η = softplus(r_η·M_eta(u_k)),  α = sigmoid(r_α·M_alpha(u_k)),
    y = M_memory(u_q),

every memory makes its own target ``v̂_□ = M_□(v)`` and descends ``‖M_□(k) - v̂_□‖²`` by DGD with retention and
momentum. Everything is generated from the state at the last chunk boundary (Eq. 90, 93); k, v and v̂ have unit length.

Three departures from the printed form, each for a measured reason (BUILD_NOTES.md): keys and values come from slow
projections of their own; retention pulls toward the meta-learned initial weights, so the state is the change from them;
and the last layer's gradient, which is linear in its weights, is folded into the delta term, exact at every token:

    last layer, input z = σ(W2 k):  β = (1+c) η',  η' = η / (1 + (1+c) η ‖z‖²),  forcing c η' (v̂ - k) zᵀ,  c = 2
    inner layer, input k:           β = η',        η' = η / (1 + η ‖k‖²),         forcing -η' g kᵀ, g at the boundary
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.memory import chunk_decay, end_of_chunk, read_chunk, solve_chunk
from nl_jax.modules.layers import CausalConv, linear, unit_length

MEMORIES = ("key", "eta", "alpha", "value", "memory")  # stacked in this order; the first three read u_k
_FOLD = 2.0  # c: the factor of the gradient of ‖·‖²


class Weights(NamedTuple):
    """Both layers of all memories of all heads, stacked."""

    inner: Float[Array, "*batch heads memories*hidden head_dim"]  # W2
    outer: Float[Array, "*batch heads memories head_dim hidden"]  # W1


class SelfModifyingTitansState(NamedTuple):
    """What the memories have learned since the text began, in float32; sizes do not depend on its length."""

    conv: Float[Array, "batch 3 channels"]
    change: Weights  # weights minus initial weights, after the last token
    momentum: Weights
    boundary: Weights  # the change at each memory's last chunk boundary, from which it generates
    position: Int[Array, ""]  # tokens since the text began


class _Inputs(NamedTuple):
    """What slow weights make of the tokens of one or many pieces."""

    key: Float[Array, "... batch heads C head_dim"]
    value: Float[Array, "... batch heads C head_dim"]
    query: Float[Array, "... batch heads C head_dim"]
    mu: Float[Array, "... batch heads C"]
    valid: Float[Array, "... C"]


class InitialMemories(nnx.Module):
    """The meta-learned initial weights of all memories."""

    def __init__(self, num_heads: int, head_dim: int, hidden: int, *, rngs: nnx.Rngs):
        count = len(MEMORIES)
        inner = jax.random.normal(rngs.params(), (num_heads, count * hidden, head_dim)) / head_dim**0.5
        outer = jax.random.normal(rngs.params(), (num_heads, count, head_dim, hidden)) / hidden**0.5
        self.inner = nnx.Param(inner)
        self.outer = nnx.Param(outer)


class SelfModifyingTitans(nnx.Module):
    """Self-modifying Titans as a sequence mixer, ``y, state = mixer(x, state)``.

    Args:
      width: of input and output.
      num_heads: must divide width.
      chunk_size: tokens between two boundaries of the memory that answers.
      projection_chunk_size: the same for the other four; None for ``chunk_size``. One must divide the other.
      memory_hidden: hidden units of each memory; None for the head size.
      read: "token" (each token reads the memory updated up to itself) or "boundary" (Eq. 90: up to the last boundary).
      rngs: source of the initial weights.

    Raises:
      ValueError: for a head count that does not divide width, a chunk size below 1, chunk sizes of which neither
        divides the other, or an unknown read.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        chunk_size: int = 64,
        projection_chunk_size: int | None = None,
        memory_hidden: int | None = None,
        read: str = "token",
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide width={width}")
        projection_chunk_size = chunk_size if projection_chunk_size is None else projection_chunk_size
        small, large = sorted((chunk_size, projection_chunk_size))
        if small < 1 or large % small:
            raise ValueError(
                f"chunk_size={chunk_size} and projection_chunk_size={projection_chunk_size} must be at least 1, "
                "and one must divide the other"
            )
        if read not in ("token", "boundary"):
            raise ValueError(f"read={read!r} must be 'token' or 'boundary'")
        head_dim = width // num_heads
        self.num_heads, self.head_dim = num_heads, head_dim
        self.hidden = head_dim if memory_hidden is None else memory_hidden
        self.chunk_sizes = (projection_chunk_size,) * (len(MEMORIES) - 1) + (chunk_size,)
        self.piece = small
        self.read = read
        self.query = linear(width, width, rngs=rngs)
        self.key = linear(width, width, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)
        self.conv = CausalConv(3 * width, rngs=rngs)
        self.memories = InitialMemories(num_heads, head_dim, self.hidden, rngs=rngs)
        self.eta_read = nnx.Param(jax.random.normal(rngs.params(), (num_heads, head_dim)))
        self.eta_bias = nnx.Param(jnp.full((num_heads,), -2.0))  # η ≈ 0.13
        self.alpha_read = nnx.Param(jax.random.normal(rngs.params(), (num_heads, head_dim)))
        self.alpha_bias = nnx.Param(jnp.full((num_heads,), 4.0))  # α ≈ 0.98
        self.mu = linear(width, num_heads, bias=1.0, rngs=rngs)  # μ ≈ 0.73
        self.output_norm = nnx.RMSNorm(head_dim, rngs=rngs)
        self.output = linear(width, width, scale=output_scale, rngs=rngs)

    def init_state(self, batch_size: int) -> SelfModifyingTitansState:
        """The state before the first token: every memory at its initial weights."""
        initial = Weights(self.memories.inner[...], self.memories.outer[...])
        zero = jax.tree.map(lambda w: jnp.zeros((batch_size, *w.shape)), initial)
        return SelfModifyingTitansState(self.conv.init_state(batch_size), zero, zero, zero, jnp.zeros((), jnp.int32))

    def __call__(
        self, x: Float[Array, "batch time width"], state: SelfModifyingTitansState | None = None
    ) -> tuple[Float[Array, "batch time width"], SelfModifyingTitansState]:
        """Reads and learns the tokens of x; ``state=None`` starts a text.

        Any number of tokens in any number of calls gives the same outputs and state as one call, up to rounding.
        """
        batch, time, width = x.shape
        fresh = state is None
        state = self.init_state(batch) if state is None else state
        wide = jnp.promote_types(x.dtype, jnp.float32)  # memories learn in float32, whatever the products run in
        projected = jnp.concatenate([self.key(x), self.value(x), self.query(x)], axis=-1)
        projected, conv = self.conv(projected, state.conv)
        key, value, query = (
            unit_length(jnp.moveaxis(jax.nn.silu(u).reshape(batch, time, self.num_heads, self.head_dim), 1, 2))
            for u in jnp.split(projected.astype(wide), 3, axis=-1)
        )
        mu = jnp.moveaxis(jax.nn.sigmoid(self.mu(x).astype(wide)), 1, 2)
        inputs = _Inputs(key, value, query, mu, jnp.ones((time,)))
        # a first token inside a piece is put at its place there, so that pieces end where chunks end
        if fresh or time == 1:
            size, offset = min(self.piece, time), jnp.zeros((), jnp.int32)
            pieces = -(-time // size)
            padded = jax.tree.map(lambda u: _pad_time(u, pieces * size - time), inputs)
        else:
            size, offset = self.piece, state.position % self.piece
            pieces = -(-(time + size - 1) // size)
            padded = jax.tree.map(lambda u: _place(u, pieces * size, offset), inputs)
        starts = state.position - offset + size * jnp.arange(pieces)
        memories = state.change, state.momentum, state.boundary

        def body(memories, piece):
            inputs, start = piece
            change, momentum, boundary = memories
            if not fresh or len(set(self.chunk_sizes)) > 1:
                due = (start > state.position) & (start <= state.position + time)
                boundary = self._at_boundary(start, change, boundary, due)
            else:
                boundary = change
            y, change, momentum = self._learn(inputs, change, momentum, boundary)
            return (change, momentum, boundary), y

        cut = jax.tree.map(lambda u: _cut(u, pieces, size), padded)
        if pieces == 1:
            memories, y = body(memories, (jax.tree.map(lambda u: u[0], cut), starts[0]))
        else:
            memories, y = jax.lax.scan(jax.checkpoint(body), memories, (cut, starts))
            y = jnp.moveaxis(y, 0, 2).reshape(batch, self.num_heads, pieces * size, self.head_dim)
        y = jax.lax.dynamic_slice_in_dim(y, offset, time, axis=2)
        y = self.output_norm(jnp.moveaxis(y, 1, 2)).reshape(batch, time, width)
        change, momentum, boundary = memories
        end = state.position + time
        boundary = self._at_boundary(end, change, boundary, jnp.asarray(True))
        return self.output(y.astype(x.dtype)), SelfModifyingTitansState(conv, change, momentum, boundary, end)

    def _at_boundary(self, position, change, boundary, due) -> Weights:
        """The change of each memory whose chunk ends at ``position``, the old boundary for the others."""
        ends = due & (position % jnp.asarray(self.chunk_sizes) == 0)
        return Weights(
            jnp.where(jnp.repeat(ends, self.hidden)[:, None], change.inner, boundary.inner),
            jnp.where(ends[:, None, None], change.outer, boundary.outer),
        )

    def _learn(
        self, inputs: _Inputs, change: Weights, momentum: Weights, boundary: Weights
    ) -> tuple[Float[Array, "batch heads C head_dim"], Weights, Weights]:
        """One piece: generate from the boundary, update in closed form, read. Returns (y, change, momentum)."""
        hidden, valid = self.hidden, inputs.valid
        initial = Weights(self.memories.inner[...], self.memories.outer[...])
        weights = jax.tree.map(jnp.add, initial, boundary)

        def split(rows):  # [..., C, memories*hidden] -> [..., memories, C, hidden]
            return jnp.moveaxis(rows.reshape(*rows.shape[:-1], -1, hidden), -2, -3)

        def answer(u, first, last):  # memories first..last at u, [batch, heads, last-first, C, head_dim]
            rows = u @ _transpose(weights.inner[:, :, first * hidden : last * hidden])
            return u[:, :, None] + jax.nn.silu(split(rows)) @ _transpose(weights.outer[:, :, first:last])

        from_key = answer(inputs.key, 0, 3)
        key = unit_length(from_key[:, :, 0])
        eta = jax.nn.softplus(_dot(from_key[:, :, 1], self.eta_read[...]) + self.eta_bias[...][:, None]) * valid
        alpha = jax.nn.sigmoid(_dot(from_key[:, :, 2], self.alpha_read[...]) + self.alpha_bias[...][:, None])
        alpha = jnp.where(valid > 0, alpha, 1.0)
        value = unit_length(answer(inputs.value, 3, 4)[:, :, 0])

        # keys and values go through every memory in one product
        rows = split(jnp.concatenate([key, value], axis=2) @ _transpose(weights.inner))
        length = key.shape[2]
        features, slope = jax.vjp(jax.nn.silu, rows[..., :length, :])
        both = jnp.concatenate([features, jax.nn.silu(rows[..., length:, :])], axis=-2) @ _transpose(weights.outer)
        target = unit_length(value[:, :, None] + both[..., length:, :])
        error = key[:, :, None] + both[..., :length, :] - target
        (gradient,) = slope(_FOLD * error @ weights.outer)
        gradient = jnp.moveaxis(gradient, 2, 3).reshape(*key.shape[:3], -1)

        mu = jnp.where(valid > 0, inputs.mu, 1.0)
        decay = chunk_decay(alpha, mu, valid)
        damp = 1.0 - mu  # momentum sums to 1 / (1 - μ) of its forcing

        eta_inner = eta / (1.0 + eta * jnp.sum(jnp.square(key), axis=-1))
        inner = solve_chunk(
            change.inner,
            momentum.inner,
            key,
            -(damp * eta_inner)[..., None] * gradient,
            eta_inner,
            decay,
            initial_answers=key @ _transpose(initial.inner),
        )
        eta, damp = eta[:, :, None], damp[:, :, None]
        eta_outer = eta / (1.0 + (1.0 + _FOLD) * eta * jnp.sum(jnp.square(features), axis=-1))
        shared = jax.tree.map(lambda d: d[:, :, None], decay)
        outer = solve_chunk(
            change.outer,
            momentum.outer,
            features,
            (_FOLD * damp * eta_outer)[..., None] * (target - key[:, :, None]),
            (1.0 + _FOLD) * eta_outer,
            shared,
            initial_answers=features @ _transpose(initial.outer),
        )
        (inner_change, inner_momentum), (outer_change, outer_momentum) = end_of_chunk(inner), end_of_chunk(outer)
        change, momentum = Weights(inner_change, outer_change), Weights(inner_momentum, outer_momentum)
        if self.read == "boundary":
            y = answer(inputs.query, 4, 5)[:, :, 0]
        else:
            query, first = inputs.query, 4 * hidden  # the memory that answers is the last of the stack
            own = inner.rows(slice(first, None))
            features = jax.nn.silu(read_chunk(own, query, query @ _transpose(initial.inner[:, first:])))
            own = jax.tree.map(lambda u: u[:, :, -1], outer)
            y = query + read_chunk(own, features, features @ _transpose(initial.outer[:, 4]))
        return y, change, momentum


def _transpose(w: Array) -> Array:
    return jnp.swapaxes(w, -1, -2)


def _dot(x: Float[Array, "batch heads C head_dim"], w: Float[Array, "heads head_dim"]) -> Float[Array, "batch heads C"]:
    return jnp.sum(x * w[:, None], axis=-1)


def _time_axis(u: Array) -> int:
    """[time], [batch, heads, time] and [batch, heads, time, head_dim] are all there are."""
    return min(2, u.ndim - 1)


def _pad_time(u: Array, count: int) -> Array:
    axis = _time_axis(u)
    return jnp.pad(u, [(0, count) if i == axis else (0, 0) for i in range(u.ndim)])


def _place(u: Array, length: int, offset: Array) -> Array:
    axis = _time_axis(u)
    room = jnp.zeros((*u.shape[:axis], length, *u.shape[axis + 1 :]), u.dtype)
    return jax.lax.dynamic_update_slice_in_dim(room, u, offset, axis)


def _cut(u: Array, pieces: int, size: int) -> Array:
    axis = _time_axis(u)
    return jnp.moveaxis(u.reshape(*u.shape[:axis], pieces, size, *u.shape[axis + 1 :]), axis, 0)
