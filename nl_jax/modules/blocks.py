"""Blocks of a language model: a sequence mixer, then a continuum memory, pre-norm and residual (§8.3, Eq. 94-97)."""

from typing import Any, Protocol

from flax import nnx
from jaxtyping import Array, Float

from nl_jax.modules.continuum_memory import ContinuumMemory
from nl_jax.parallel.sequence import Shard


class Mixer(Protocol):
    """What a block asks of its sequence mixer."""

    def init_state(self, batch_size: int) -> Any:
        """State before the first token."""

    def __call__(
        self, x: Float[Array, "batch time width"], state: Any = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], Any]:
        """Output, and state after the last token."""


class Block(nnx.Module):
    """``h = x + mixer(RMSNorm(x))``, then ``cms(h)``, whose levels bring their own norm and residual.

    Args:
      width: of the residual stream.
      mixer: the sequence mixer.
      cms: the feed-forward part.
      norm_epsilon: of the mixer's norm.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import Block, ContinuumMemory, mixer
      >>> rngs = nnx.Rngs(0)
      >>> memory = mixer("linear_attention", width=8, num_heads=1, chunk_size=4, rngs=rngs)
      >>> block = Block(8, memory, ContinuumMemory(8, 32, rngs=rngs), rngs=rngs)
      >>> y, state = block(jnp.ones((2, 5, 8)), block.init_state(2))
      >>> y.shape
      (2, 5, 8)
    """

    def __init__(self, width: int, mixer: Mixer, cms: ContinuumMemory, *, norm_epsilon: float = 1e-6, rngs: nnx.Rngs):
        self.mixer_norm = nnx.RMSNorm(width, epsilon=norm_epsilon, rngs=rngs)
        self.mixer = mixer
        self.cms = cms

    def init_state(self, batch_size: int) -> Any:
        """The mixer's state before the first token."""
        return self.mixer.init_state(batch_size)

    def __call__(
        self, x: Float[Array, "batch time width"], state: Any = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], Any]:
        """Output and the mixer's state; ``state=None`` starts a text. ``at_boundary`` as for ``MemoryMixer``."""
        y, state = self.mixer(self.mixer_norm(x).astype(x.dtype), state, at_boundary=at_boundary)
        return self.cms(x + y), state

    def read_shard(
        self, x: Float[Array, "batch time width"], state: Any, shard: Shard
    ) -> tuple[Float[Array, "batch time width"], Any, Any]:
        """As ``Attention.read_shard``, for a mixer that has it."""
        mixer: Any = self.mixer
        y, own, last = mixer.read_shard(self.mixer_norm(x).astype(x.dtype), state, shard)
        return self.cms(x + y), own, last
