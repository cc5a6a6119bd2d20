"""Continuum Memory System (§7): a chain of MLP blocks, each with its own update frequency (Eq. 70-74)."""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.modules.layers import linear


class FeedForward(nnx.Module):
    """One level: a pre-norm residual SwiGLU MLP, ``x + down(silu(gate(n)) * up(n))`` with ``n = RMSNorm(x)``."""

    def __init__(self, width: int, hidden: int, *, output_scale: float = 1.0, rngs: nnx.Rngs):
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.gate = linear(width, hidden, rngs=rngs)
        self.up = linear(width, hidden, rngs=rngs)
        self.down = linear(hidden, width, scale=output_scale, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        """One residual step."""
        n = self.norm(x)
        return x + self.down(jax.nn.silu(self.gate(n)) * self.up(n))


class ContinuumMemory(nnx.Module):
    """A chain of MLP blocks with periods, the sequential variant (Eq. 73); a Transformer's MLP is the case of one.

    Block ℓ is updated every ``periods[ℓ]`` optimizer steps with the sum over those steps of its gradient, unchanged in
    between (Eq. 71): the blocks are ``levels[ℓ]``, and ``nl_jax.optim.multi_frequency`` keeps the cadence.

    Args:
      width: of input and output.
      hidden: of each block.
      periods: optimizer steps between two updates of each block, in the order of the chain.
    """

    def __init__(
        self, width: int, hidden: int, periods: Sequence[int] = (1,), *, output_scale: float = 1.0, rngs: nnx.Rngs
    ):
        if not periods or any(not isinstance(p, int) or p < 1 for p in periods):
            raise ValueError(f"periods={tuple(periods)} must be one or more integers, each at least 1")
        if width < 1 or hidden < 1:
            raise ValueError(f"width={width} and hidden={hidden} must be at least 1")
        self.periods = tuple(periods)
        self.levels = nnx.List([FeedForward(width, hidden, output_scale=output_scale, rngs=rngs) for _ in periods])

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        """The chain, residual stream in and out."""
        for level in self.levels:
            x = level(x)
        return x
