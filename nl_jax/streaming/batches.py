"""Batches of examples as arrays: rows of tokens, filled up to few lengths and cut into chunks."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nl_jax.pretrained.level_stacking import Chunk


def cut(rows: Sequence[tuple[list[int], int]], batch_size: int, chunk: int, fill: int) -> list[Chunk]:
    """The chunks of a batch of rows of tokens, with the number of those in each that are not learned.

    Args:
      rows: at most ``batch_size``; rows of zeros stand for the others.
      batch_size: rows of each chunk.
      chunk: tokens of a chunk at most.
      fill: tokens to which shorter rows are filled up; longer ones are filled up to a power of two, up to ``chunk``.
    """
    length = max(len(tokens) for tokens, _ in rows) - 1
    size = min(chunk, 1 << (max(length, fill) - 1).bit_length())
    whole = -(-length // size) * size
    table: Any = np.zeros((batch_size, whole + 1), np.int32)
    mask: Any = np.zeros((batch_size, whole), np.float32)
    for i, (tokens, given) in enumerate(rows):
        table[i, : len(tokens)] = tokens
        mask[i, given - 1 : len(tokens) - 1] = 1.0
    starts = range(0, whole, size)
    return [Chunk(table[:, a : a + size], table[:, a + 1 : a + size + 1], mask[:, a : a + size]) for a in starts]


def grouped(batches: Iterable[list[Chunk]], most: int) -> Iterator[list[list[Chunk]]]:
    """Batches as lists of their chunks: up to ``most`` of one chunk each, or one of several."""
    group: list[list[Chunk]] = []
    for chunks in batches:
        if group and (len(chunks) > 1 or len(group) == most):
            yield group
            group = []
        group.append(chunks)
        if len(chunks) > 1:
            yield group
            group = []
    if group:
        yield group


def stacked(chunks: Sequence[Chunk], size: int) -> Chunk:
    """Chunks [batch, time] one after the other [size, batch, time], filled up with zeros."""

    def together(arrays: list[np.ndarray]) -> Any:
        filled = np.zeros((size, len(arrays[0]), max(array.shape[1] for array in arrays)), arrays[0].dtype)
        for place, array in zip(filled, arrays, strict=False):
            place[:, : array.shape[1]] = array
        return filled

    tokens, targets, mask = (together([np.asarray(chunk[i]) for chunk in chunks]) for i in range(3))
    return Chunk(tokens, targets, mask)
