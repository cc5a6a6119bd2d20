"""Associative memories: architectures, objectives, learning rules, the chunkwise engine, and attention in blocks."""

from nl_jax.memory.architectures import Architecture
from nl_jax.memory.channel_recurrence import (
    ChannelChunk,
    ChannelDecay,
    channel_decay,
    end_of_channel_chunk,
    read_channel_chunk,
    solve_channel_chunk,
)
from nl_jax.memory.description import RULES, Memory, Rule, memory_of
from nl_jax.memory.guards import limit_cotangent, limit_norm
from nl_jax.memory.learning import (
    Layers,
    Tokens,
    Weights,
    apply_layer,
    end_of_memory,
    learn_chunk,
    learn_linear_chunks,
    read_memory,
)
from nl_jax.memory.least_squares import (
    LeastSquares,
    init_least_squares,
    learn_least_squares,
    least_squares_weights,
    read_least_squares,
)
from nl_jax.memory.linear_chunks import linear_channel_chunks, linear_chunks
from nl_jax.memory.objectives import OBJECTIVES, Objective, dot_product, huber, l2, lp
from nl_jax.memory.recurrence import (
    Chunk,
    Decay,
    chunk_decay,
    chunk_update,
    end_of_chunk,
    read_chunk,
    read_chunk_transposed,
    solve_chunk,
)
from nl_jax.memory.reference import sequential_update
from nl_jax.memory.rules import limit_strength
from nl_jax.memory.shrinkage import excess, shrink
from nl_jax.ops.attention import blockwise_attention

__all__ = [
    "OBJECTIVES",
    "RULES",
    "Architecture",
    "ChannelChunk",
    "ChannelDecay",
    "Chunk",
    "Decay",
    "Layers",
    "LeastSquares",
    "Memory",
    "Objective",
    "Rule",
    "Tokens",
    "Weights",
    "apply_layer",
    "blockwise_attention",
    "channel_decay",
    "chunk_decay",
    "chunk_update",
    "dot_product",
    "end_of_channel_chunk",
    "end_of_chunk",
    "end_of_memory",
    "excess",
    "huber",
    "init_least_squares",
    "l2",
    "learn_chunk",
    "learn_least_squares",
    "learn_linear_chunks",
    "least_squares_weights",
    "limit_cotangent",
    "limit_norm",
    "limit_strength",
    "linear_channel_chunks",
    "linear_chunks",
    "lp",
    "memory_of",
    "read_channel_chunk",
    "read_chunk",
    "read_chunk_transposed",
    "read_least_squares",
    "read_memory",
    "sequential_update",
    "shrink",
    "solve_channel_chunk",
    "solve_chunk",
]
