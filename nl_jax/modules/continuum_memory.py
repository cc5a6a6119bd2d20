"""Continuum Memory System (§7): MLP blocks, each with its own update frequency (Eq. 70-74)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.modules.layers import linear, remat_except_dots
from nl_jax.ops import widen

VARIANTS = ("sequential", "nested", "nested_first_order", "independent")


class FeedForward(nnx.Module):
    """One level: a pre-norm residual SwiGLU MLP, ``x + down(silu(gate(n)) * up(n))`` with ``n = RMSNorm(x)``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import FeedForward
      >>> layer = FeedForward(8, 32, output_scale=0.0, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((1, 3, 8))
      >>> bool((layer(x) == x).all())  # a residual step, which adds nothing yet
      True
    """

    def __init__(
        self, width: int, hidden: int, *, output_scale: float = 1.0, norm_epsilon: float = 1e-6, rngs: nnx.Rngs
    ):
        self.norm = nnx.RMSNorm(width, epsilon=norm_epsilon, rngs=rngs)
        self.gate = linear(width, hidden, rngs=rngs)
        self.up = linear(width, hidden, rngs=rngs)
        self.down = linear(hidden, width, scale=output_scale, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        """One residual step."""
        return x + remat_except_dots(self._residual)(x)

    def _residual(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        assert self.norm.scale is not None
        if x.shape[-1:] != self.norm.scale.shape:
            raise ValueError(f"x has shape {x.shape}; expected a last axis of the width, {self.norm.scale.shape[0]}")
        wide = widen(x)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        n = (wide * jax.lax.rsqrt(mean_square + self.norm.epsilon) * self.norm.scale[...]).astype(x.dtype)
        return self.down(jax.nn.silu(self.gate(n)) * self.up(n))


class OfEachSequence(nnx.Module):
    """A level that learns in context: every leaf of its block is [batch, ...], weights for each sequence."""

    def __init__(self, block: FeedForward):
        self.block = block

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        """One residual step of each sequence by its own weights."""
        return jax.vmap(lambda block, x: block(x[None])[0])(self.block, x)


class ContinuumMemory(nnx.Module):
    """MLP blocks with periods (Eq. 70-74); a Transformer's MLP is the case of one.

    Block ℓ, ``levels[ℓ]``, is updated once in ``periods[ℓ]`` with the sum over that time of its gradient, unchanged in
    between (Eq. 71). Periods count optimizer steps, where ``nl_jax.optim.multi_frequency`` keeps the cadence, or
    tokens, where the blocks learn in context (``nl_jax.models.in_context``).

    Args:
      width: of input and output.
      hidden: of each block.
      periods: time between two updates of each block, in the order of the chain.
      variant: "sequential" (Eq. 73) and "nested" (Eq. 72) are chains, which differ in how they learn in context;
        "nested_first_order" is "nested" whose slow levels take first-order gradients of where faster ones start;
        "independent" (Eq. 74) blocks see the same input, and a learned weighted sum combines them.
      norm_epsilon: of the blocks' norms.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import ContinuumMemory
      >>> cms = ContinuumMemory(8, 32, periods=(1, 4), rngs=nnx.Rngs(0))
      >>> cms(jnp.ones((2, 5, 8))).shape, len(cms.levels)
      ((2, 5, 8), 2)
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        periods: Sequence[int] = (1,),
        *,
        variant: str = "sequential",
        output_scale: float = 1.0,
        norm_epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        if not periods or any(isinstance(p, bool) or not isinstance(p, int) or p < 1 for p in periods):
            raise ValueError(f"periods={tuple(periods)}: expected one or more integers, each at least 1")
        if width < 1 or hidden < 1:
            raise ValueError(f"width={width} and hidden={hidden}: expected at least 1")
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r}: expected one of {', '.join(map(repr, VARIANTS))}")
        self.periods, self.variant = tuple(periods), variant
        options: Any = {"output_scale": output_scale, "norm_epsilon": norm_epsilon, "rngs": rngs}
        self.levels = nnx.List([FeedForward(width, hidden, **options) for _ in periods])
        self.mixture = nnx.Param(jnp.ones(len(periods))) if variant == "independent" else None

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        """Residual stream in and out."""
        if self.mixture is not None:
            weights = self.mixture[...].astype(x.dtype)
            return x + sum(w * (level(x) - x) for w, level in zip(weights, self.levels, strict=True))
        for level in self.levels:
            x = level(x)
        return x
