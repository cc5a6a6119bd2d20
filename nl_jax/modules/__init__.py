"""Flax modules: sequence mixers, the continuum memory, and the blocks made of them."""

from nl_jax.modules.blocks import Block
from nl_jax.modules.continuum_memory import ContinuumMemory, FeedForward
from nl_jax.modules.mixers import MIXERS, mixer
from nl_jax.modules.mixers.attention import Attention, AttentionState
from nl_jax.modules.mixers.memory_mixer import MemoryMixer, MemoryState
from nl_jax.modules.mixers.self_modifying_titans import PAPER_FORM, SelfModifyingTitans

__all__ = [
    "MIXERS",
    "PAPER_FORM",
    "Attention",
    "AttentionState",
    "Block",
    "ContinuumMemory",
    "FeedForward",
    "MemoryMixer",
    "MemoryState",
    "SelfModifyingTitans",
    "mixer",
]
