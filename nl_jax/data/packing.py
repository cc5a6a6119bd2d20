"""Packs documents into one stream of tokens, and cuts the stream into the windows that a model sees.

``document_boundaries`` says whether windows cross the boundaries of documents. With ``carry`` the stream is cut into
windows of equal length, so a window may hold several documents, and a document is read after the ones before it. With
``reset`` each document begins a new window, and the rest of its last window is padding. Either way the first token of a
document is predicted from a separator, and every token of every document is a target once.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt

from nl_jax.data.reading import Document
from nl_jax.data.tokenizer import Tokenizer
from nl_jax.errors import InputError

BOUNDARIES = ("carry", "reset")
"""What happens to the state at the end of a document: it is carried into the next one, or reset."""
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Packed:
    """A stream of tokens, with one separator before every document and one at the end.

    Attributes:
        tokens: ``[N]``, in the smallest unsigned type that holds the vocabulary.
        bytes_per_token: ``[N]``, number of bytes of text that each token covers, 0 for separators; unsigned.
        separators: ``[D + 1]`` for D documents, positions of the separators: document i is
            ``tokens[separators[i] + 1 : separators[i + 1]]``.

    Examples:
        >>> from nl_jax.data import ByteTokenizer, Document, pack
        >>> packed = pack([Document("a", b"hi"), Document("b", b"you")], ByteTokenizer())
        >>> packed.tokens.tolist(), packed.separators.tolist()
        ([256, 104, 105, 256, 121, 111, 117, 256], [0, 3, 7])
    """

    tokens: UInt[np.ndarray, "N"]
    bytes_per_token: UInt[np.ndarray, "N"]
    separators: Int[np.ndarray, "D+1"]


def pack(documents: Sequence[Document], tokenizer: Tokenizer) -> Packed:
    """Encodes the documents and joins them with separators; without documents there is the last separator alone.

    Examples:
        >>> from nl_jax.data import ByteTokenizer, Document, pack
        >>> packed = pack([Document("a", b"hi")], ByteTokenizer())
        >>> packed.tokens.tolist(), packed.bytes_per_token.tolist()  # separators cover no text
        ([256, 104, 105, 256], [0, 1, 1, 0])
    """
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
        # Each part is converted to a small type at once, since a corpus is large; `concatenate` takes the widest type.
        counts += [np.zeros(1, np.uint8), num_bytes.astype(np.min_scalar_type(num_bytes.max(initial=0)))]
    joined = np.concatenate([*tokens, separator]), np.concatenate([*counts, np.zeros(1, np.uint8)])
    return Packed(*joined, np.array(separators))


def lost_bytes(documents: Sequence[Document], packed: Packed, tokenizer: Tokenizer) -> Int[np.ndarray, "D"]:
    """Number of bytes of each document that are lost when its tokens are decoded.

    If a byte value occurs more often in the text than in the decoded tokens, the difference is lost: text that the
    tokenizer drops, maps to the token for unknown text, or changes (capitals, accents, runs of white space). Text that
    the tokenizer adds does not make up for this.

    Args:
        documents: the documents that were packed.
        packed: ``pack(documents, tokenizer)``.
        tokenizer: the tokenizer that packed them.

    Examples:
        >>> from nl_jax.data import ByteTokenizer, Document, lost_bytes, pack
        >>> documents, tokenizer = [Document("a", b"hi"), Document("b", b"you")], ByteTokenizer()
        >>> lost_bytes(documents, pack(documents, tokenizer), tokenizer).tolist()
        [0, 0]
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
    """First and last positions of windows in which every token, except the first separator, is a target once.

    Args:
        packed: the stream.
        seq_len: largest number of targets in a window, T; a window has at most T + 1 tokens.
        document_boundaries: ``carry`` or ``reset`` (see the module's docstring).

    Returns:
        Starts and ends, each ``[n]``; the end is the position of the last token of a window.

    Raises:
        InputError: if ``seq_len < 1``.
        ValueError: for another value of ``document_boundaries``.
    """
    _check_seq_len(seq_len)
    if document_boundaries not in BOUNDARIES:
        raise ValueError(f"document_boundaries={document_boundaries!r}: expected one of {', '.join(BOUNDARIES)}")
    bounds = packed.separators if document_boundaries == "reset" else np.array([0, len(packed.tokens) - 1])
    counts = -(-np.diff(bounds) // seq_len)
    first = np.repeat(np.cumsum(counts) - counts, counts)  # index of the document's first window
    starts = np.repeat(bounds[:-1], counts) + (np.arange(counts.sum()) - first) * seq_len
    return starts, np.minimum(starts + seq_len, np.repeat(bounds[1:], counts))


def padding_share(packed: Packed, seq_len: int) -> float:
    """Share of the positions that are padding with ``document_boundaries="reset"``, from 0 to 1.

    Examples:
        >>> from nl_jax.data import ByteTokenizer, Document, pack, padding_share
        >>> packed = pack([Document("a", b"abc"), Document("b", b"a")], ByteTokenizer())
        >>> padding_share(packed, seq_len=4)  # the second document fills half of its window
        0.25
    """
    starts, ends = spans(packed, seq_len, "reset")
    return 1 - float((ends - starts).sum()) / (len(starts) * seq_len)


def cut(tokens: UInt[np.ndarray, "N"], starts: Int[np.ndarray, "B"], ends: Int[np.ndarray, "B"], seq_len: int) -> Batch:
    """Cuts the windows from ``starts`` to ``ends`` (see :func:`spans`), padded with 0 to ``seq_len`` targets.

    Returns:
        ``{"inputs": int32 [B, T], "targets": int32 [B, T], "mask": float32 [B, T]}``. Targets are one token ahead of
        inputs; the mask is 0 where the target is padding.
    """
    positions = starts[:, None] + np.arange(seq_len + 1)
    inside = positions <= ends[:, None]
    sequences = np.where(inside, tokens[np.minimum(positions, len(tokens) - 1)], 0).astype(np.int32)
    return {"inputs": sequences[:, :-1], "targets": sequences[:, 1:], "mask": inside[:, 1:].astype(np.float32)}


def windows(array: UInt[np.ndarray, "N"], seq_len: int) -> UInt[np.ndarray, "n T+1"]:
    """Windows of T + 1 tokens that overlap by one, T = ``seq_len``, as a view: row i is ``array[i*T : i*T + T + 1]``.

    The first ``T`` tokens of a row are inputs and the last ``T`` are targets. So every token but the very first is a
    target exactly once, except for at most ``T - 1`` tokens at the end that do not fill a row.

    Raises:
        InputError: if ``seq_len < 1``, or the array is too short for one row.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.data import windows
        >>> windows(np.arange(8, dtype=np.uint8), seq_len=3).tolist()
        [[0, 1, 2, 3], [3, 4, 5, 6]]
    """
    _check_seq_len(seq_len)
    if len(array) < seq_len + 1:
        most = max(len(array) - 1, 0)
        raise InputError(f"seq_len={seq_len}: expected at most {most}, one less than this split of the text has tokens")
    return np.lib.stride_tricks.sliding_window_view(array, seq_len + 1)[::seq_len]


def _check_seq_len(seq_len: int) -> None:
    if seq_len < 1:
        raise InputError(f"seq_len={seq_len}: expected at least 1")
