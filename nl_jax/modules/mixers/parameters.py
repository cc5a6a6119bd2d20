"""The parameters that every mixer with memories has, and what they make of the tokens."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.memory import Layers, Memory
from nl_jax.modules.layers import CausalConv, linear, start_as_induction, unit_length
from nl_jax.modules.mixers.coefficients import coefficient, is_signed, per_token
from nl_jax.modules.mixers.initial_memories import InitialMemories

Groups = tuple[Layers, ...]  # layers of each group of memories; a group is one ``Memory``


class Projected(NamedTuple):
    """What slow weights make of the tokens. Time is axis 2 of every array."""

    key: Float[Array, "batch heads time head_dim"]  # these three in the dtype of the projections' products
    value: Float[Array, "batch heads time head_dim"]
    query: Float[Array, "batch heads time head_dim"]
    eta: Float[Array, "batch heads time"] | None  # None where a memory makes it
    alpha: Float[Array, "batch heads time"] | None
    mu: Float[Array, "batch heads time"] | None  # None without momentum
    valid: Float[Array, "1 1 time"]  # 1 for tokens, 0 for padding


class MixerParameters(nnx.Module):
    """Parameters of a mixer with memories: projections in and out, initial memories, and coefficients.

    A mixer adds ``__call__``, and parameters of its own. Nothing here calls a method of a mixer.

    Args:
      width: of input and output.
      num_heads: must divide width; every head has memories of its own.
      memories: description of each group of memories.
      learned: whether the weights at the start of a text are learned; else they are zero.
      pulls_to_initial: whether retention and the delta term pull toward the learned initial weights, or toward zero.
      eta, alpha, mu: as ``coefficient`` takes them.
      output_scale: of the output projection's initial weights.
      rngs: source of the initial weights.

    Raises:
      ValueError: for a head count that does not divide width, what ``coefficient`` refuses, or a retention that can be
        negative beside a delta term, since the two could expand a state.
    """

    kernel = "xla"  # which program carries a state through chunks (``choose_kernel``); others have one derivative only
    has_kernel: Any = False  # whether there is one but XLA's

    def __init__(
        self,
        width: int,
        num_heads: int,
        memories: tuple[Memory, ...],
        *,
        learned: bool,
        pulls_to_initial: bool,
        eta: Any,
        alpha: Any,
        mu: Any,
        output_scale: float,
        rngs: nnx.Rngs,
    ):
        if is_signed(alpha) and any(memory.has_delta_term(memory.last) for memory in memories):
            raise ValueError(f"alpha={alpha!r}: expected memories without a delta term (of delta or the loss)")
        self.num_heads, self.head_dim = num_heads, head_size(width, num_heads)
        self.groups, self.pulls_to_initial = memories, pulls_to_initial and learned
        self.query = linear(width, width, rngs=rngs)
        self.key = linear(width, width, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)
        self.conv = CausalConv(3 * width, rngs=rngs)
        start_as_induction(self.query, self.key, self.conv)
        initial = [InitialMemories(num_heads, memory.architecture, rngs=rngs) for memory in memories] if learned else []
        self.memories = nnx.List(initial) if learned else None
        self.eta = coefficient("eta", eta, width, num_heads, rngs)
        self.alpha = coefficient("alpha", alpha, width, num_heads, rngs)
        self.mu = coefficient("mu", mu, width, num_heads, rngs)
        self.output_norm = nnx.RMSNorm(self.head_dim, rngs=rngs)
        self.output = linear(width, width, scale=output_scale, rngs=rngs)

    @property
    def state_dtype(self) -> Any:
        """The type in which memories learn and are kept: float32, or the parameters' type where that is wider."""
        return jnp.promote_types(self.key.kernel[...].dtype, jnp.float32)

    def initial_weights(self) -> Groups:
        """Weights at the start of a text, [heads, ...] a layer."""
        if self.memories is None:
            return tuple(
                tuple(jnp.zeros((self.num_heads, *shape), self.state_dtype) for shape in memory.architecture.shapes())
                for memory in self.groups
            )
        return tuple(tuple(layer[...] for layer in group.layers) for group in self.memories)

    def w0(self) -> Groups | None:
        """W₀, the weights that retention and the delta term pull toward, [heads, ...] a layer; None for zero."""
        return self.initial_weights() if self.pulls_to_initial else None

    def project(
        self, x: Float[Array, "batch time width"], conv: Float[Array, "batch 3 channels"]
    ) -> tuple[Projected, Float[Array, "batch 3 channels"]]:
        """Unit-length keys, values and queries from projections and the convolution, and the coefficients.

        Lengths and coefficients are computed in float32 or wider.
        ``conv`` holds the convolution's last three inputs; those after the last token are returned.
        """
        batch, time, _ = x.shape
        wide = self.state_dtype
        projected = jnp.concatenate([self.query(x), self.key(x), self.value(x)], axis=-1)
        projected, conv = self.conv(projected, conv)
        dtype = jnp.bfloat16 if projected.dtype == jnp.bfloat16 else wide
        query, key, value = (
            unit_length(jnp.moveaxis(u.reshape(batch, time, self.num_heads, self.head_dim), 1, 2)).astype(dtype)
            for u in jnp.split(projected.astype(wide), 3, axis=-1)
        )
        eta, alpha, mu = (per_token(c, x, wide) for c in (self.eta, self.alpha, self.mu))
        return Projected(key, value, query, eta, alpha, mu, jnp.ones((1, 1, time), wide)), conv

    def project_back(
        self, y: Float[Array, "batch heads time head_dim"], dtype: Any
    ) -> Float[Array, "batch time width"]:
        """The output from the memories' answers: each head's answer is normalised, then all are projected."""
        batch, heads, time, head_dim = y.shape
        y = self.output_norm(jnp.moveaxis(y, 1, 2)).reshape(batch, time, heads * head_dim)
        return self.output(y.astype(dtype))


def head_size(width: int, num_heads: int) -> int:
    """Width of a head; ``ValueError`` if the heads do not divide the width."""
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads={num_heads}: expected a divisor of width={width}")
    return width // num_heads


def over_batch(tree: Any, batch_size: int) -> Any:
    """Gives every array the batch's axis.

    Parameters that are used inside of a scan over subchunks get it before, since their gradients would else be summed
    over the batch, and over devices, at every subchunk.
    """
    return jax.tree.map(lambda w: jnp.broadcast_to(w, (batch_size, *w.shape)), tree)
