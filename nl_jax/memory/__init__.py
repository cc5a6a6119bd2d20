"""Associative memories: the chunkwise engine that every parametric memory runs on, and softmax attention in blocks."""

from nl_jax.memory.attention import blockwise_attention
from nl_jax.memory.chunkwise import (
    Chunk,
    Decay,
    chunk_decay,
    chunk_update,
    end_of_chunk,
    read_chunk,
    sequential_update,
    solve_chunk,
)

__all__ = [
    "Chunk",
    "Decay",
    "blockwise_attention",
    "chunk_decay",
    "chunk_update",
    "end_of_chunk",
    "read_chunk",
    "sequential_update",
    "solve_chunk",
]
