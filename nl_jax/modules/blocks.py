"""Blocks of a language model: a sequence mixer, then a continuum memory, pre-norm and residual (§8.3, Eq. 94-97)."""

from collections.abc import Sequence
from typing import Any, Protocol

from flax import nnx
from jaxtyping import Array, Float

from nl_jax.modules.attention import Attention
from nl_jax.modules.continuum_memory import ContinuumMemory
from nl_jax.modules.self_modifying_titans import SelfModifyingTitans


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
    """

    def __init__(self, width: int, mixer: Mixer, cms: ContinuumMemory, *, rngs: nnx.Rngs):
        self.mixer_norm = nnx.RMSNorm(width, rngs=rngs)
        self.mixer = mixer
        self.cms = cms

    def init_state(self, batch_size: int) -> Any:
        """The mixer's state before the first token."""
        return self.mixer.init_state(batch_size)

    def __call__(
        self, x: Float[Array, "batch time width"], state: Any = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], Any]:
        """Output and the mixer's state; ``state=None`` starts a text. ``at_boundary`` as for ``MemoryMixer``."""
        y, state = self.mixer(self.mixer_norm(x), state, at_boundary=at_boundary)
        return self.cms(x + y), state


class HopeBlock(Block):
    """Hope: self-modifying Titans, then CMS. ``options`` go to ``SelfModifyingTitans``."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_hidden: int,
        cms_periods: Sequence[int] = (1,),
        *,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        mixer = SelfModifyingTitans(width, num_heads, output_scale=output_scale, rngs=rngs, **options)
        cms = ContinuumMemory(width, mlp_hidden, cms_periods, output_scale=output_scale, rngs=rngs)
        super().__init__(width, mixer, cms, rngs=rngs)


class HopeAttentionBlock(Block):
    """Hope-Attention: softmax attention with RoPE, then CMS. ``options`` go to ``Attention``."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_hidden: int,
        cms_periods: Sequence[int] = (1,),
        *,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        mixer = Attention(width, num_heads, output_scale=output_scale, rngs=rngs, **options)
        cms = ContinuumMemory(width, mlp_hidden, cms_periods, output_scale=output_scale, rngs=rngs)
        super().__init__(width, mixer, cms, rngs=rngs)


class TransformerBlock(HopeAttentionBlock):
    """Transformer++ (RMSNorm, RoPE, SwiGLU), the paper's baseline: Hope-Attention whose CMS is one block."""

    def __init__(self, width: int, num_heads: int, mlp_hidden: int, **options: Any):
        super().__init__(width, num_heads, mlp_hidden, (1,), **options)
