"""Documents as one stream of tokens, and the windows of it that a model sees.

Documents are kept apart or not, ``document_boundaries``: with ``carry`` the stream is cut into windows wherever the
length of a sequence says, so that a window may hold several documents and a document is read with those before it in
mind; with ``reset`` each document begins a window of its own, and what its last window has left is padding. Either way
a document's first token is predicted from a separator, and every token of every document is a target once.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt

from nl_jax.data.reading import Document
from nl_jax.data.tokenizer import Tokenizer
from nl_jax.errors import InputError

BOUNDARIES = ("carry", "reset")
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Packed:
    """A stream of tokens: every document after one separator, and one separator at the very end.

    Attributes:
        tokens: ``[N]``, the smallest unsigned type that holds the vocabulary.
        bytes_per_token: ``[N]``, how many bytes of text each token covers, 0 for separators; unsigned.
        separators: ``[D + 1]`` for D documents, the positions of the separators: document i is
            ``tokens[separators[i] + 1 : separators[i + 1]]``.
    """

    tokens: UInt[np.ndarray, "N"]
    bytes_per_token: UInt[np.ndarray, "N"]
    separators: Int[np.ndarray, "D+1"]


def pack(documents: Sequence[Document], tokenizer: Tokenizer) -> Packed:
    """Encodes the documents and joins them with separators; no documents give the last separator alone."""
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    separator = np.array([tokenizer.separator_id], dtype)
    tokens, counts, separators = [], [], [0]
    for document in documents:
        try:
            ids, num_bytes = tokenizer.encode(document.text)
        except InputError as error:
            raise InputError(f"{document.name}: {error}") from error
        separators.append(separators[-1] + len(ids) + 1)
        tokens += [separator, ids.astype(dtype)]
        # Small types at once, since a corpus is large; `concatenate` takes the widest.
        counts += [np.zeros(1, np.uint8), num_bytes.astype(np.min_scalar_type(num_bytes.max(initial=0)))]
    joined = np.concatenate([*tokens, separator]), np.concatenate([*counts, np.zeros(1, np.uint8)])
    return Packed(*joined, np.array(separators))


def lost_bytes(documents: Sequence[Document], packed: Packed, tokenizer: Tokenizer) -> Int[np.ndarray, "D"]:
    """How many bytes of each document its tokens do not give back.

    A byte value that is in the text more often than in the decoded tokens is lost that many times: text that the
    tokenizer drops, maps to a token for the unknown, or changes (capitals, accents, runs of white space). What it adds
    does not make up for that.

    Args:
        documents: what was packed.
        packed: ``pack(documents, tokenizer)``.
        tokenizer: likewise.
    """
    lost = np.zeros(len(documents), np.int64)
    for i, document in enumerate(documents):
        ids = packed.tokens[packed.separators[i] + 1 : packed.separators[i + 1]]
        decoded = tokenizer.decode(ids.astype(np.int32)).encode("utf-8")
        if decoded != document.text:
            there, back = (np.bincount(np.frombuffer(t, np.uint8), minlength=256) for t in (document.text, decoded))
            lost[i] = np.maximum(there - back, 0).sum()
    return lost


def spans(
    packed: Packed, seq_len: int, document_boundaries: str = "carry"
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """First and last positions of the windows that have every token as a target once, all but the first separator.

    Args:
        packed: the stream.
        seq_len: targets in a window at most, T; a window has at most T + 1 tokens.
        document_boundaries: ``carry`` or ``reset``, see above.

    Raises:
        InputError: ``seq_len < 1``.
        ValueError: another ``document_boundaries``.
    """
    _check_seq_len(seq_len)
    if document_boundaries not in BOUNDARIES:
        raise ValueError(f"document_boundaries={document_boundaries!r}: expected one of {', '.join(BOUNDARIES)}")
    bounds = packed.separators if document_boundaries == "reset" else np.array([0, len(packed.tokens) - 1])
    counts = -(-np.diff(bounds) // seq_len)
    first = np.repeat(np.cumsum(counts) - counts, counts)  # window of the same document
    starts = np.repeat(bounds[:-1], counts) + (np.arange(counts.sum()) - first) * seq_len
    return starts, np.minimum(starts + seq_len, np.repeat(bounds[1:], counts))


def padding_share(packed: Packed, seq_len: int) -> float:
    """Share of the positions that are padding where documents are kept apart, from 0 to 1."""
    starts, ends = spans(packed, seq_len, "reset")
    return 1 - float((ends - starts).sum()) / (len(starts) * seq_len)


def cut(tokens: UInt[np.ndarray, "N"], starts: Int[np.ndarray, "B"], ends: Int[np.ndarray, "B"], seq_len: int) -> Batch:
    """The windows from ``starts`` to ``ends``, as :func:`spans` gives them, padded with 0 to ``seq_len`` targets.

    Returns:
        ``{"inputs": int32 [B, T], "targets": int32 [B, T], "mask": float32 [B, T]}``, targets one token ahead; the mask
        is 0 where the target is padding.
    """
    positions = starts[:, None] + np.arange(seq_len + 1)
    inside = positions <= ends[:, None]
    sequences = np.where(inside, tokens[np.minimum(positions, len(tokens) - 1)], 0).astype(np.int32)
    return {"inputs": sequences[:, :-1], "targets": sequences[:, 1:], "mask": inside[:, 1:].astype(np.float32)}


def windows(array: UInt[np.ndarray, "N"], seq_len: int) -> UInt[np.ndarray, "n T+1"]:
    """The windows of ``seq_len + 1`` tokens that overlap by one, as a view: ``array[i*T : i*T + T + 1]`` is row ``i``.

    The first ``T`` of a row are inputs and the last ``T`` are targets, so that every token but the very first is a
    target exactly once, up to the at most ``T - 1`` tokens at the end that do not fill a row.

    Raises:
        InputError: ``seq_len < 1``, or no row fits.
    """
    _check_seq_len(seq_len)
    if len(array) < seq_len + 1:
        raise InputError(f"--seq_len={seq_len} is longer than this split of the text: {max(len(array) - 1, 0)} at most")
    return np.lib.stride_tricks.sliding_window_view(array, seq_len + 1)[::seq_len]


def _check_seq_len(seq_len: int) -> None:
    if seq_len < 1:
        raise InputError(f"--seq_len={seq_len}: expected at least 1")
