"""The values of GGUF's tensors in float32.

The three block formats of llama.cpp that are common in small models are read here, over a whole tensor at once: the
package ``gguf``, which reads the others, takes six times as long. A block has 32 values of a row.
"""

from typing import Any

import ml_dtypes
import numpy as np

PLAIN = {0: np.float32, 1: np.float16, 28: np.float64, 30: ml_dtypes.bfloat16}
BLOCK = 32


def dequantise(stored: np.ndarray, kind: int, gguf: Any) -> np.ndarray:
    """The values of a tensor.

    Args:
      stored: the tensor's bytes, uint8 [rows, bytes of a row].
      kind: number of a ``gguf.GGMLQuantizationType``.
      gguf: the package, for the types that this module does not know.

    Returns:
      float [rows, columns], in the tensor's own type where that is a floating-point type.

    Raises:
      NotImplementedError: for a type that the package does not know either.
    """
    if kind in PLAIN:
        return stored.view(PLAIN[kind])
    if kind in _BLOCKS:
        size, values = _BLOCKS[kind]
        blocks = stored.reshape(-1, size)
        return values(blocks).reshape(len(stored), -1)
    return gguf.quants.dequantize(stored, gguf.GGMLQuantizationType(kind))


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """The low halves of all bytes of a block, then the high halves."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.int8) - 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8)


# Type -> bytes of a block, and its values.
_BLOCKS: dict[int, Any] = {2: (2 + BLOCK // 2, _q4_0), 3: (4 + BLOCK // 2, _q4_1), 8: (2 + BLOCK, _q8_0)}
