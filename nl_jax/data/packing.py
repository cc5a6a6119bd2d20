"""Documents as one stream of tokens, and the windows of it that a model sees."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt

from nl_jax.data.corpus import Document
from nl_jax.data.tokenizer import Tokenizer
from nl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Packed:
    """A stream of tokens: every document after one separator, and one separator at the very end.

    Attributes:
        tokens: ``[N]``, the smallest unsigned type that holds the vocabulary.
        bytes_per_token: ``[N]``, how many bytes of text each token covers, 0 for separators; unsigned.
    """

    tokens: UInt[np.ndarray, "N"]
    bytes_per_token: UInt[np.ndarray, "N"]


def pack(documents: Sequence[Document], tokenizer: Tokenizer) -> Packed:
    """Encodes the documents and joins them with separators; no documents give the last separator alone."""
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    separator = np.array([tokenizer.separator_id], dtype)
    tokens, counts = [], []
    for document in documents:
        ids, num_bytes = tokenizer.encode(document.text)
        tokens += [separator, ids.astype(dtype)]
        # Small types at once, since a corpus is large; `concatenate` takes the widest.
        counts += [np.zeros(1, np.uint8), num_bytes.astype(np.min_scalar_type(num_bytes.max(initial=0)))]
    return Packed(np.concatenate([*tokens, separator]), np.concatenate([*counts, np.zeros(1, np.uint8)]))


def windows(array: UInt[np.ndarray, "N"], seq_len: int) -> UInt[np.ndarray, "n T+1"]:
    """The windows of ``seq_len + 1`` tokens that overlap by one, as a view: ``array[i*T : i*T + T + 1]`` is row ``i``.

    The first ``T`` of a row are inputs and the last ``T`` are targets, so that every token but the very first is a
    target exactly once, up to the at most ``T - 1`` tokens at the end that do not fill a row.

    Raises:
        InputError: ``seq_len < 1``, or no row fits.
    """
    if seq_len < 1:
        raise InputError(f"--seq_len={seq_len}: expected at least 1")
    if len(array) < seq_len + 1:
        raise InputError(f"--seq_len={seq_len} is longer than this split of the text: {max(len(array) - 1, 0)} at most")
    return np.lib.stride_tricks.sliding_window_view(array, seq_len + 1)[::seq_len]
