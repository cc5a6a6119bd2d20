"""Flax modules: sequence mixers, the continuum memory, and the blocks made of them."""

from nl_jax.modules.blocks import Block
from nl_jax.modules.continuum_memory import ContinuumMemory, FeedForward
from nl_jax.modules.mixers import (
    LSTM,
    MIXERS,
    PAPER_FORM,
    Attention,
    AttentionState,
    ChannelRetention,
    Comba,
    HybridState,
    LSTMState,
    MemoryMixer,
    MemoryState,
    Mesa,
    Oja,
    SelfModifyingTitans,
    SelfReferentialMatrix,
    SlidingWindowMemory,
    choose_kernel,
    mixer,
)

__all__ = [
    "LSTM",
    "MIXERS",
    "PAPER_FORM",
    "Attention",
    "AttentionState",
    "Block",
    "ChannelRetention",
    "Comba",
    "ContinuumMemory",
    "FeedForward",
    "HybridState",
    "LSTMState",
    "MemoryMixer",
    "MemoryState",
    "Mesa",
    "Oja",
    "SelfModifyingTitans",
    "SelfReferentialMatrix",
    "SlidingWindowMemory",
    "choose_kernel",
    "mixer",
]
