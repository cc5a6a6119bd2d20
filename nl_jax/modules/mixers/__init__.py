"""Sequence mixers: attention, and memories that learn in context."""

from nl_jax.modules.mixers.attention import Attention, AttentionState
from nl_jax.modules.mixers.channel_retention import ChannelRetention
from nl_jax.modules.mixers.comba import Comba
from nl_jax.modules.mixers.hybrid import HybridState, SlidingWindowMemory, memory_part, with_memory_part
from nl_jax.modules.mixers.lstm import LSTM, LSTMState
from nl_jax.modules.mixers.memory_mixer import MemoryMixer
from nl_jax.modules.mixers.mesa import Mesa
from nl_jax.modules.mixers.observation import Observation, observe
from nl_jax.modules.mixers.oja import Oja
from nl_jax.modules.mixers.registry import MIXERS, choose_kernel, mixer
from nl_jax.modules.mixers.self_modifying_titans import PAPER_FORM, SelfModifyingTitans
from nl_jax.modules.mixers.srwm import SelfReferentialMatrix
from nl_jax.modules.mixers.stepping import Memories, MemoryState

__all__ = [
    "LSTM",
    "MIXERS",
    "PAPER_FORM",
    "Attention",
    "AttentionState",
    "ChannelRetention",
    "Comba",
    "HybridState",
    "LSTMState",
    "Memories",
    "MemoryMixer",
    "MemoryState",
    "Mesa",
    "Observation",
    "Oja",
    "SelfModifyingTitans",
    "SelfReferentialMatrix",
    "SlidingWindowMemory",
    "choose_kernel",
    "memory_part",
    "mixer",
    "observe",
    "with_memory_part",
]
