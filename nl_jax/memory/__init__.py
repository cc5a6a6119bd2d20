"""Associative memories: the chunkwise engine that every memory of the library runs on."""

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
    "chunk_decay",
    "chunk_update",
    "end_of_chunk",
    "read_chunk",
    "sequential_update",
    "solve_chunk",
]
