"""Sequence mixers: attention, and memories that learn in context."""

from nl_jax.modules.mixers.attention import Attention, AttentionState
from nl_jax.modules.mixers.memory_mixer import MemoryMixer
from nl_jax.modules.mixers.mesa import Mesa
from nl_jax.modules.mixers.oja import Oja
from nl_jax.modules.mixers.registry import MIXERS, mixer
from nl_jax.modules.mixers.self_modifying_titans import PAPER_FORM, SelfModifyingTitans
from nl_jax.modules.mixers.stepping import Memories, MemoryState

__all__ = [
    "MIXERS",
    "PAPER_FORM",
    "Attention",
    "AttentionState",
    "Memories",
    "MemoryMixer",
    "MemoryState",
    "Mesa",
    "Oja",
    "SelfModifyingTitans",
    "mixer",
]
