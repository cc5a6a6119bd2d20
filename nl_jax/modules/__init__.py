"""Flax modules: sequence mixers, the continuum memory, and the blocks made of them."""

from nl_jax.modules.blocks import Block
from nl_jax.modules.continuum_memory import ContinuumMemory, FeedForward
from nl_jax.modules.mixers import (
    MIXERS,
    PAPER_FORM,
    Attention,
    AttentionState,
    MemoryMixer,
    MemoryState,
    Mesa,
    Oja,
    SelfModifyingTitans,
    mixer,
)

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
    "Mesa",
    "Oja",
    "SelfModifyingTitans",
    "mixer",
]
