"""Matrix memories whose retention is a vector over the channels of their keys: RWKV-7 and gated linear attention."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import (
    Rule,
    channel_decay,
    end_of_channel_chunk,
    limit_cotangent,
    limit_norm,
    linear_channel_chunks,
    read_channel_chunk,
    solve_channel_chunk,
)
from nl_jax.memory.guards import LARGEST_STATE
from nl_jax.modules.layers import linear, unit_length
from nl_jax.modules.mixers.all_chunks import LinearMemory
from nl_jax.modules.mixers.parameters import Projected, over_batch
from nl_jax.modules.mixers.stepping import Memories, MemoryState, read_text
from nl_jax.modules.mixers.zero_matrix import ZeroMatrix
from nl_jax.ops import ChunkMaps, matmul, narrow_like

LEAST_LOG_RETENTION = -(2.718281828459045**-0.5)  # RWKV-7's log w lies between this and 0
GATE_POWER = 1 / 16  # gated linear attention's w = σ(x)^(1/16)


class LowRank(nnx.Module):
    """A vector of every token, ``(x A) B + b`` with A [width, rank], cut into heads. The bias is added in float32."""

    def __init__(self, width: int, rank: int, bias: Float[Array, "width"], *, rngs: nnx.Rngs):
        self.down = linear(width, rank, rngs=rngs)
        self.up = linear(rank, width, scale=0.1, bias=0.0, rngs=rngs)
        own: Any = self.up.bias
        own[...] = bias

    def __call__(
        self, x: Float[Array, "batch time width"], num_heads: int, dtype: Any, *, squash: bool = False
    ) -> Float[Array, "batch heads time head_dim"]:
        """The vectors, in ``dtype``; ``squash`` puts a tanh between A and B."""
        assert self.up.bias is not None
        inner = self.down(x)
        inner = jnp.tanh(inner) if squash else inner
        out = matmul(inner, self.up.kernel[...]).astype(dtype) + self.up.bias[...].astype(dtype)
        return jnp.moveaxis(out.reshape(*x.shape[:2], num_heads, out.shape[-1] // num_heads), 1, 2)


class ChannelRetention(ZeroMatrix):
    """A matrix per head that starts at zero and forgets each channel of its keys at a rate of its own.

    Without ``removal`` that is gated linear attention, ``W ← diag(w) W + k vᵀ`` with w = σ(·)^(1/16) (Yang et al.,
    2024, arXiv 2312.06635). With it RWKV-7 (Peng et al., 2025, arXiv 2503.14456), W [key, value]:

        W ← diag(w) W - (a ∘ κ)(κᵀ W) + k̃ vᵀ,    w = exp(-e^(-1/2) σ(·)),    a = σ(·)
        κ = k ∘ ξ at unit length,    k̃ = k ∘ (1 + (a - 1) ∘ ζ)

    Maps of low rank make the vectors w and a of every token; the vectors ξ and ζ of every head are learned. The module
    ``nl_jax.memory.channel_recurrence`` says the cost. RWKV-7's transition may lengthen a vector, since a differs
    between channels. So the Frobenius norm of W is limited to 1,000 at the end of every chunk, and cotangents of W to a
    million.

    Departures: keys and queries have unit length; a width-4 convolution takes the place of RWKV-7's token shift; the
    output has no gate and no bonus of each token's own value; values do not mix with those of the first layer.

    Args:
      width: of input and output.
      num_heads: must divide width.
      removal: whether the memory removes what it answers at κ, as RWKV-7 does.
      rank: of the maps that make w and a; None for the larger of 16 and width / 16.
      chunk_size: tokens that are learned at once.
      output_scale: of the output projection's initial weights.
      rngs: source of the initial weights.

    Raises:
      ValueError: for a head count that does not divide width, or a chunk size or rank below 1.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import ChannelRetention
      >>> mixer = lambda x: ChannelRetention(8, 2, removal=True, chunk_size=4, rngs=nnx.Rngs(0))(x)  # RWKV-7
      >>> y, state = jax.eval_shape(mixer, jnp.ones((1, 8, 8)))  # shapes alone
      >>> y.shape, state.delta_w[0][0].shape  # a matrix for each head
      ((1, 8, 8), (1, 2, 4, 4))
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        removal: bool,
        rank: int | None = None,
        chunk_size: int = 64,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        rank = max(16, width // 16) if rank is None else rank
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank={rank!r}: expected an integer of at least 1")
        self.removal = removal
        super().__init__(
            width,
            num_heads,
            rule=Rule("paper", delta=removal),
            chunk_size=chunk_size,
            output_scale=output_scale,
            rngs=rngs,
        )
        # a head's channels start with memories of 5,000 to 20 tokens (RWKV-7), and of 50,000 to 130
        start = jnp.linspace(*((-8.0, -2.5) if removal else (8.0, 2.0)), self.head_dim, dtype=jnp.float32)
        self.retention = LowRank(width, rank, jnp.tile(start, num_heads), rngs=rngs)
        self.rate = LowRank(width, rank, jnp.zeros(width, jnp.float32), rngs=rngs) if removal else None
        ones = jnp.ones((num_heads, self.head_dim), jnp.float32)
        self.removal_scale = nnx.Param(ones) if removal else None
        self.write_mix = nnx.Param(jnp.array(ones)) if removal else None

    def project(
        self, x: Float[Array, "batch time width"], conv: Float[Array, "batch 3 channels"]
    ) -> tuple[Projected, Float[Array, "batch 3 channels"]]:
        """As ``MixerParameters.project``; ``alpha`` is w and ``eta`` is a, both [batch, heads, time, head_dim]."""
        projected, conv = super().project(x, conv)
        wide = self.state_dtype
        before = self.retention(x, self.num_heads, wide, squash=self.removal)
        if self.rate is None:
            return projected._replace(alpha=jnp.exp(GATE_POWER * jax.nn.log_sigmoid(before))), conv
        retention = jnp.exp(LEAST_LOG_RETENTION * jax.nn.sigmoid(before))
        return projected._replace(alpha=retention, eta=jax.nn.sigmoid(self.rate(x, self.num_heads, wide))), conv

    def __call__(
        self, x: Float[Array, "batch time width"], state: MemoryState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], MemoryState]:
        """Reads and learns the tokens of x, as ``MemoryMixer`` does; ``state=None`` starts a text."""
        wide, vectors = self.state_dtype, ()
        if self.removal_scale is not None and self.write_mix is not None:
            own = (self.removal_scale[...].astype(wide), self.write_mix[...].astype(wide))
            vectors = jax.tree.map(lambda u: u[:, :, None], over_batch(own, len(x)))

        def learn(
            memories: Memories, tokens: Projected, advances: Array, starts_at_boundary: bool
        ) -> tuple[Array, Memories]:
            assert tokens.alpha is not None
            decay = channel_decay(jnp.where(advances[..., None] > 0, tokens.alpha, 1.0))
            weights = memories.delta_w[0][0]
            keys, removal = tokens.key, None
            if vectors:
                assert tokens.eta is not None
                scale, mix = vectors
                rate = tokens.eta * tokens.valid[..., None]
                kappa = unit_length(keys.astype(wide) * scale)
                removal = (narrow_like(kappa, keys), narrow_like(rate * kappa, keys))
                keys = narrow_like(keys * (1.0 + (tokens.eta - 1.0) * mix), keys)
                weights = limit_cotangent(weights)
            chunk = solve_channel_chunk(weights, keys, tokens.value, removal, decay)
            weights = end_of_channel_chunk(chunk)
            weights = limit_norm(weights, LARGEST_STATE, (-2, -1)) if vectors else weights
            return read_channel_chunk(chunk, tokens.query), memories._replace(delta_w=((weights,),))

        def maps(tokens: Projected) -> tuple[ChunkMaps, None]:
            assert tokens.alpha is not None
            decay = channel_decay(jnp.where(tokens.valid[..., None] > 0, tokens.alpha, 1.0))
            return linear_channel_chunks(tokens.key, tokens.value, decay, tokens.query), None

        linear = LinearMemory(self.kernel, maps) if self.has_kernel else None
        return read_text(self, self.chunking, learn, x, state, at_boundary=at_boundary, kernel=linear)

    @property
    def has_kernel(self) -> bool:
        """Whether a kernel can carry the memory from chunk to chunk, as it can where nothing limits its norm."""
        return not self.removal
