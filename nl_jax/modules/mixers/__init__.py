"""Sequence mixers: attention, and memories that learn in context."""

from nl_jax.modules.mixers.attention import Attention, AttentionState
from nl_jax.modules.mixers.memory_mixer import MemoryMixer, MemoryState
from nl_jax.modules.mixers.registry import MIXERS, mixer
from nl_jax.modules.mixers.self_modifying_titans import PAPER_FORM, SelfModifyingTitans

__all__ = [
    "MIXERS",
    "PAPER_FORM",
    "Attention",
    "AttentionState",
    "MemoryMixer",
    "MemoryState",
    "SelfModifyingTitans",
    "mixer",
]
