"""Turns text into batches: an endless, resumable iterator for training, and fixed batches for evaluation."""

import dataclasses
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Int

from nl_jax.data.corpus import Splits, fingerprint, split_documents
from nl_jax.data.packing import Batch, Packed, cut, lost_bytes, pack, spans, windows
from nl_jax.data.reading import Document, ReadSummary, read_documents
from nl_jax.data.tokenizer import Tokenizer, load_tokenizer
from nl_jax.errors import InputError

LOST_AT_MOST = 0.01  # share of a text's bytes that a tokenizer may lose: bits per byte counts them as free


@dataclasses.dataclass(frozen=True)
class TextData:
    """The text of a language-model run, with its tokens.

    Attributes:
        tokenizer: the tokenizer that made the tokens.
        documents: the raw texts by split.
        train, validation, test: the tokens of each split.
        fingerprint: identifies the data in ``results.json``: ``documents``, ``bytes`` and ``sha256`` of all texts, and
            ``tokenizer``, the digest of the tokenizer.
        summary: the files that were read or skipped; ``None`` if the text was not read from files.
        lost_share: share of the bytes that decoding the tokens does not give back, from 0 to 1.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.data import load_text_data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.txt").write_text("one line of text 12\\n" * 100)
        ...     data = load_text_data(folder)
        >>> len(data.train_text), len(data.test_text), len(data.train.tokens)
        (1800, 100, 1802)
    """

    tokenizer: Tokenizer
    documents: Splits
    train: Packed
    validation: Packed
    test: Packed
    fingerprint: dict[str, int | str]
    summary: ReadSummary | None = None
    lost_share: float = 0.0

    @property
    def train_text(self) -> bytes:
        """The joined training texts, from which baselines may learn."""
        return b"".join(document.text for document in self.documents.train)

    @property
    def test_text(self) -> bytes:
        """The joined test texts, on which baselines are scored."""
        return b"".join(document.text for document in self.documents.test)


def load_text_data(
    path: str | None = None,
    tokenizer_path: str | None = None,
    text_key: str = "text",
    *,
    exclude: Callable[[Path], bool] = lambda directory: False,
    skip_bad: bool = False,
) -> TextData:
    """Reads, splits and packs text. The split depends on the text alone, not on a seed.

    Bits per byte is a loss divided by all bytes of the text, so a tokenizer must encode all of them. A tokenizer that
    loses more than 1 % of the bytes is refused; it may drop unknown text, or use one token for all unknown text, for
    capital and small letters, or for any white space. ``lost_share`` of the result is the share that is lost.

    Args:
        path: as for :func:`nl_jax.data.read_documents`; the default is the standard library's source.
        tokenizer_path: a Hugging Face ``tokenizer.json``; by default every byte is a token.
        text_key: the key of the text in JSON objects.
        exclude, skip_bad: as for :func:`nl_jax.data.read_documents`.

    Raises:
        InputError: as for :func:`read_documents`, :func:`split_documents` and :func:`load_tokenizer`; also if the
            tokenizer cannot encode the text, or loses more than 1 % of it.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.data import load_text_data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.txt").write_text("one line of text 12\\n" * 100)
        ...     data = load_text_data(folder)
        >>> data.tokenizer.vocab_size, data.lost_share, data.summary.files
        (257, 0.0, 1)
    """
    tokenizer = load_tokenizer(tokenizer_path)  # first, since its errors are found quickly
    documents, summary = read_documents(path, text_key, exclude=exclude, skip_bad=skip_bad)
    splits = split_documents(documents)
    train, validation, test = (pack(part, tokenizer) for part in (splits.train, splits.validation, splits.test))
    lost = [
        lost_bytes(part, packed, tokenizer)
        for part, packed in ((splits.train, train), (splits.validation, validation), (splits.test, test))
    ]
    share = _checked_share(np.concatenate(lost), [*splits.train, *splits.validation, *splits.test], tokenizer)
    identity = {**fingerprint(documents), "tokenizer": tokenizer.digest}
    return TextData(tokenizer, splits, train, validation, test, identity, summary, share)


def _checked_share(lost: Int[np.ndarray, "D"], documents: Sequence[Document], tokenizer: Tokenizer) -> float:
    """Share of the documents' bytes that are lost, given the ``lost`` bytes of each document.

    Raises:
        InputError: if the share is above `LOST_AT_MOST`.
    """
    share = float(lost.sum()) / sum(len(document.text) for document in documents)
    if share > LOST_AT_MOST:
        worst = documents[int(np.argmax(lost))]
        raise InputError(
            f"{tokenizer}: loses {share:.1%} of the text's bytes, such as {_lost_character(worst, tokenizer)!r} in "
            f"{worst.name}, which bits per byte would count as read for nothing; expected one that gives back "
            f"{1 - LOST_AT_MOST:.0%} or more, as byte-level ones do"
        )
    return share


def _lost_character(document: Document, tokenizer: Tokenizer) -> str:
    """The first character that occurs more often in the text than in its decoded tokens."""
    text, back = document.text.decode("utf-8"), tokenizer.decode(tokenizer.encode(document.text)[0])
    return next(character for character in dict.fromkeys(text) if text.count(character) > back.count(character))


def train_iterator(
    packed: Packed,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    rows: Sequence[int] | np.ndarray | None = None,
    document_boundaries: str = "carry",
) -> grain.DatasetIterator:
    """Makes an endless iterator over batches of windows, in an order that is shuffled anew in every epoch.

    A batch may span two epochs.

    Args:
        packed: the training split.
        batch_size: number of sequences in a global batch, B.
        seq_len: number of tokens in a sequence, T.
        seed: random seed of the order, 0 or more.
        rows: the rows of each global batch to read, from 0 to ``B - 1``, such as `nl_jax.parallel.local_rows`; by
            default all. The global batch does not depend on how many processes share it.
        document_boundaries: ``carry``: a window may hold several documents, so that a document is read after earlier
            ones; the last ``(N - 1) % T`` tokens of the split are not used. ``reset``: a window holds tokens of one
            document only, so that no other document can change its predictions; all tokens are used.

    Returns:
        An iterator over ``{"inputs": int32 [len(rows), T], "targets": likewise}``, targets one token ahead. With
        ``reset`` batches also have ``"mask": float32 [len(rows), T]``, 0 where the target is padding. To resume, save
        ``get_state()`` of the iterator; the state does not depend on the rows, so it is the same on every process.

    Raises:
        InputError: for a size below 1, or a sequence longer than the split.
        ValueError: for another value of ``document_boundaries``, or rows that the batch does not have.

    Examples:
        >>> from nl_jax.data import ByteTokenizer, Document, pack, train_iterator
        >>> packed = pack([Document("a", bytes(range(97, 122)))], ByteTokenizer())
        >>> batches = train_iterator(packed, batch_size=2, seq_len=4, seed=0)
        >>> batch = next(batches)
        >>> batch["inputs"].shape, bool((batch["inputs"][:, 1:] == batch["targets"][:, :-1]).all())
        ((2, 4), True)
    """
    _check_at_least_one(batch_size=batch_size)
    if seed < 0:
        raise InputError(f"seed={seed}: expected 0 or more")
    own_rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    if not (len(own_rows) and own_rows.min() >= 0 and own_rows.max() < batch_size):
        raise ValueError(f"rows={reprlib.repr(rows)}: expected some of the rows 0 to {batch_size - 1}")
    starts, ends = spans(packed, seq_len, document_boundaries)
    if document_boundaries == "carry":
        starts = starts[: len(windows(packed.tokens, seq_len))]  # raises an error if there is no whole window
    elif not len(starts):
        raise InputError("the split to train on has no text; expected at least one document")

    def read(indices: Int[np.ndarray, "B"]) -> Batch:
        own = indices[own_rows]
        batch = cut(packed.tokens, starts[own], ends[own], seq_len)
        if document_boundaries == "carry":
            del batch["mask"]  # it is all ones
        return batch

    # Batches are made of indices, not of sequences, so that each process reads its own rows only.
    epochs = 2**62 // len(starts)  # practically endless; grain's own endless length overflows in batches of one
    dataset = grain.MapDataset.range(len(starts)).seed(seed).shuffle().repeat(epochs).batch(batch_size).map(read)
    # Grain reads 500 batches ahead by default, which takes gigabytes; text in memory needs only a few.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """A fixed set of batches, and the numbers of bytes and tokens by which their loss is divided.

    Attributes:
        batches: a sequence of ``{"inputs": int32 [B, T], "targets": int32 [B, T], "mask": float32 [B, T]}``. A batch is
            made each time it is indexed. The mask is 0 where the target is padding.
        num_bytes: bytes of text that the targets with mask 1 cover; bits per byte = summed loss / log(2) / num_bytes.
        num_tokens: number of targets with mask 1.

    Examples:
        >>> from nl_jax.data import ByteTokenizer, Document, evaluation_batches, pack
        >>> data = evaluation_batches(pack([Document("a", b"hello")], ByteTokenizer()), batch_size=2, seq_len=4)
        >>> data.num_bytes, data.num_tokens, data.batches[0]["mask"].astype(int).tolist()
        (5, 6, [[1, 1, 1, 1], [1, 1, 0, 0]])
    """

    batches: Sequence[Batch]
    num_bytes: int
    num_tokens: int


def evaluation_batches(
    packed: Packed,
    *,
    batch_size: int,
    seq_len: int,
    max_tokens: int | None = None,
    document_boundaries: str = "carry",
) -> EvaluationSet:
    """Makes batches of the windows of a split in order, in which each token but the very first is a target once.

    The batches are the same on every process.

    Args:
        packed: the split.
        batch_size: number of sequences in a global batch, B; the last batch is padded to this size.
        seq_len: number of tokens in a sequence, T; the last window is padded to this length.
        max_tokens: take ``max_tokens / T`` windows (rounded down, at least one), spread evenly over the split. The
            default ``None`` takes all.
        document_boundaries: as for :func:`train_iterator`; with ``reset`` no earlier document helps to predict a later
            one. The targets of the whole split, and so its bytes, are the same for both values.

    Raises:
        InputError: for a size below 1, or a split without tokens.
        ValueError: for another value of ``document_boundaries``.

    Examples:
        >>> from nl_jax.data import ByteTokenizer, Document, evaluation_batches, pack
        >>> packed = pack([Document("a", b"hello")], ByteTokenizer())
        >>> data = evaluation_batches(packed, batch_size=2, seq_len=4)
        >>> data.batches[0]["inputs"][0].tolist(), data.batches[0]["targets"][0].tolist()
        ([256, 104, 101, 108], [104, 101, 108, 108])
    """
    _check_at_least_one(batch_size=batch_size, seq_len=seq_len)
    starts, ends = spans(packed, seq_len, document_boundaries)
    if not len(starts):
        raise InputError("the split to evaluate on has no text; expected at least one document")
    if max_tokens is not None:
        _check_at_least_one(max_tokens=max_tokens)
        count = min(len(starts), max(1, max_tokens // seq_len))
        chosen = (2 * np.arange(count) + 1) * len(starts) // (2 * count)  # the middle of each of `count` equal parts
        starts, ends = starts[chosen], ends[chosen]
    bytes_before = np.append(0, np.cumsum(packed.bytes_per_token, dtype=np.int64))
    num_bytes = (bytes_before[ends + 1] - bytes_before[starts + 1]).sum()
    batches = _EvaluationBatches(packed.tokens, starts, ends, batch_size, seq_len)
    return EvaluationSet(batches, int(num_bytes), int((ends - starts).sum()))


class _EvaluationBatches(Sequence[Batch]):
    def __init__(self, tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray, batch_size: int, seq_len: int):
        self._tokens, self._batch_size, self._seq_len = tokens, batch_size, seq_len
        padding = (0, -len(starts) % batch_size)  # rows that are padding only
        self._starts = np.pad(starts, padding, constant_values=len(tokens))
        self._ends = np.pad(ends, padding)

    def __len__(self) -> int:
        return len(self._starts) // self._batch_size

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        rows = slice(index % len(self) * self._batch_size, (index % len(self) + 1) * self._batch_size)
        return cut(self._tokens, self._starts[rows], self._ends[rows], self._seq_len)


def _check_at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"--{name}={size}: expected at least 1")
