"""Sliding-window attention and a memory side by side in one block."""

from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from nl_jax.modules.mixers.attention import Attention, AttentionState
from nl_jax.modules.mixers.parameters import MixerParameters
from nl_jax.modules.mixers.stepping import MemoryState


class HybridState(NamedTuple):
    """The states of the two parts.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.modules import mixer
      >>> hybrid = mixer("sliding_window_memory", width=8, num_heads=2, chunk_size=4, rngs=nnx.Rngs(0))
      >>> state = hybrid.init_state(1)
      >>> state.memory.delta_w[0][0].shape  # of each head
      (1, 2, 4, 4)
    """

    attention: AttentionState
    memory: MemoryState


class SlidingWindowMemory(nnx.Module):
    """The sum of what attention answers from the last tokens and what a memory answers from the whole text.

    Both read the same normed input, with projections of their own. That is the shape of LaCT's block (Zhang et al.,
    2025), and of Samba's (Ren et al., 2024) but for the order: Samba reads one after the other, each followed by a
    feed-forward layer. LaCT's parts share their projections, which these do not.

    Args:
      attention: the part that sees a window.
      memory: the part that learns in context, any mixer with memories.

    Raises:
      ValueError: for a part of another kind.

    Examples:
      >>> import jax
      >>> from flax import nnx
      >>> from nl_jax.modules import Attention, SlidingWindowMemory, mixer
      >>> def init_state():
      ...     rngs = nnx.Rngs(0)
      ...     memory = mixer("delta_net", width=8, num_heads=2, chunk_size=4, rngs=rngs)
      ...     return SlidingWindowMemory(Attention(8, 2, context_length=4, rngs=rngs), memory).init_state(1)
      >>> state = jax.eval_shape(init_state)  # shapes alone
      >>> state.attention.keys.shape, state.memory.delta_w[0][0].shape  # a window of 4 tokens, and all of the text
      ((1, 4, 2, 4), (1, 2, 4, 4))
    """

    def __init__(self, attention: Attention, memory: Any):
        if not isinstance(memory, MixerParameters):
            raise ValueError(f"memory={type(memory).__name__}: expected a mixer with memories")
        self.attention = attention
        self.memory: Any = memory

    @property
    def chunking(self) -> Any:
        """That of the memory."""
        return self.memory.chunking

    def init_state(self, batch_size: int) -> HybridState:
        """The state before the first token."""
        return HybridState(self.attention.init_state(batch_size), self.memory.init_state(batch_size))

    def __call__(
        self, x: Float[Array, "batch time width"], state: HybridState | None = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], HybridState]:
        """Reads the tokens of x, as its parts do; ``state=None`` starts a text."""
        before = (None, None) if state is None else state
        seen, attention = self.attention(x, before[0])
        remembered, memory = self.memory(x, before[1], at_boundary=at_boundary)
        return seen + remembered, HybridState(attention, memory)


def memory_part(state: Any) -> MemoryState | None:
    """What a mixer's state has of memories that learn in context; None for attention and recurrent networks.

    The state may be stacked over layers.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.modules import mixer
      >>> from nl_jax.modules.mixers import memory_part
      >>> attention, memory = (
      ...     mixer(name, width=8, num_heads=2, chunk_size=4, rngs=nnx.Rngs(0)) for name in ("attention", "delta_net")
      ... )
      >>> memory_part(attention.init_state(1)) is None, memory_part(memory.init_state(1)).conv.shape
      (True, (1, 3, 24))
    """
    state = state.memory if isinstance(state, HybridState) else state
    return state if isinstance(state, MemoryState) else None


def with_memory_part(state: Any, memory: MemoryState) -> Any:
    """The mixer's state with another state of its memories.

    Examples:
      >>> import jax
      >>> from flax import nnx
      >>> from nl_jax.modules import mixer
      >>> from nl_jax.modules.mixers import memory_part, with_memory_part
      >>> state = mixer("delta_net", width=8, num_heads=2, chunk_size=4, rngs=nnx.Rngs(0)).init_state(1)
      >>> doubled = jax.tree.map(lambda u: 2 * u, memory_part(state))
      >>> with_memory_part(state, doubled) is doubled  # a state of memories alone is replaced as a whole
      True
    """
    return state._replace(memory=memory) if isinstance(state, HybridState) else memory
