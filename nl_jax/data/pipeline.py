"""From text to batches: an endless, resumable iterator for training, and fixed batches for evaluation."""

import dataclasses
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

LOST_AT_MOST = 0.01  # share of a text's bytes that a tokenizer may lose: they would count as read for nothing


@dataclasses.dataclass(frozen=True)
class TextData:
    """Everything a language-model run needs of its text.

    Attributes:
        tokenizer: what made the tokens.
        documents: the raw texts by split.
        train, validation, test: their tokens.
        fingerprint: what identifies them: ``documents``, ``bytes`` and ``sha256`` of all texts, and ``tokenizer``, its
            digest; for ``results.json``.
        summary: what was read, and what was skipped; ``None`` for text that was not read from files.
        lost_share: share of the bytes that the tokens do not give back, from 0 to 1.
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
        """The training texts joined: what a baseline may learn from."""
        return b"".join(document.text for document in self.documents.train)

    @property
    def test_text(self) -> bytes:
        """The test texts joined: what a baseline is scored on."""
        return b"".join(document.text for document in self.documents.test)


def load_text_data(
    path: str | None = None,
    tokenizer_path: str | None = None,
    text_key: str = "text",
    *,
    exclude: Callable[[Path], bool] = lambda directory: False,
    skip_bad: bool = False,
) -> TextData:
    """Reads, splits and packs text; the split depends on the text alone, not on a seed.

    Bits per byte divide by all bytes of the text, so a tokenizer has to encode all of it: one that loses more than
    1 % of the bytes (it drops what it does not know, or has one token for all of that, or for capitals and small
    letters, or for any white space) is refused. ``lost_share`` tells what a tokenizer within that bound loses.

    Args:
        path: as for :func:`nl_jax.data.read_documents`; default the standard library's source.
        tokenizer_path: a Hugging Face ``tokenizer.json``; default bytes.
        text_key: the key of the text in JSON objects.
        exclude, skip_bad: as for :func:`nl_jax.data.read_documents`.

    Raises:
        InputError: as :func:`read_documents`, :func:`split_documents` and :func:`load_tokenizer` say, text that the
            tokenizer cannot encode, or a tokenizer that loses more than 1 % of it.
    """
    tokenizer = load_tokenizer(tokenizer_path)  # first, since its errors are quick to find
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
    """Share of the documents' bytes that are lost, ``lost`` of each; `InputError` where it is too large."""
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
    """The first character that is in the text more often than in what its tokens give back."""
    text, back = document.text.decode("utf-8"), tokenizer.decode(tokenizer.encode(document.text)[0])
    return next(character for character in dict.fromkeys(text) if text.count(character) > back.count(character))


def train_iterator(
    packed: Packed,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    document_boundaries: str = "carry",
) -> grain.DatasetIterator:
    """Endless batches of windows in random order, shuffled anew every epoch; a batch may span two epochs.

    Args:
        packed: the training split.
        batch_size: sequences in a global batch, B.
        seq_len: tokens in a sequence, T.
        seed: decides the order; not negative.
        process_index: which of the processes this is; it gets rows ``[index, index + 1) * B / process_count`` of each
            global batch, which is the same batch however many processes share it.
        process_count: how many processes share the input.
        document_boundaries: ``carry``: a window may hold several documents, and what is before a document is read with
            it; the last ``(N - 1) % T`` tokens of the split are not used. ``reset``: a window holds tokens of one
            document, so that no other can change what is predicted in it; all tokens are used.

    Returns:
        An iterator of ``{"inputs": int32 [B / process_count, T], "targets": likewise}``, targets one token ahead; with
        ``reset`` also ``"mask": float32 [B / process_count, T]``, 0 where the target is padding. Its ``get_state()``,
        or ``grain.checkpoint.CheckpointSave(iterator)``, is all that resuming needs, the same on every process.

    Raises:
        InputError: a size below 1, a sequence longer than the split, ``batch_size`` not divisible by the processes.
        ValueError: another ``document_boundaries``.
    """
    _check_at_least_one(batch_size=batch_size, process_count=process_count)
    if seed < 0:
        raise InputError(f"--seed={seed}: expected 0 or more")
    if batch_size % process_count:
        raise InputError(f"--batch_size={batch_size}: expected a multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index={process_index}: expected 0 to {process_count - 1}")
    starts, ends = spans(packed, seq_len, document_boundaries)
    if document_boundaries == "carry":
        starts = starts[: len(windows(packed.tokens, seq_len))]  # raises where there is not one whole window
    elif not len(starts):
        raise InputError("the split to train on has no text; expected at least one document")
    local = batch_size // process_count

    def read(indices: Int[np.ndarray, "B"]) -> Batch:
        own = indices[process_index * local : (process_index + 1) * local]
        batch = cut(packed.tokens, starts[own], ends[own], seq_len)
        if document_boundaries == "carry":
            del batch["mask"]  # of ones
        return batch

    # Indices are batched, not sequences, so that a process reads its own rows only.
    epochs = 2**62 // len(starts)  # as good as endless, whose length in grain overflows in batches of one
    dataset = grain.MapDataset.range(len(starts)).seed(seed).shuffle().repeat(epochs).batch(batch_size).map(read)
    # Grain's default of 500 batches read ahead is gigabytes; text in memory needs few.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """A fixed set of batches and what their loss is divided by.

    Attributes:
        batches: ``{"inputs": int32 [B, T], "targets": int32 [B, T], "mask": float32 [B, T]}`` each, made when asked
            for, as often as wanted. Where the mask is 0 the target is padding.
        num_bytes: text bytes of the targets whose mask is 1; bits per byte = summed loss / log(2) / num_bytes.
        num_tokens: number of targets whose mask is 1.
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
    """The windows of a split in order, each token but the very first a target once; the same on every process.

    Args:
        packed: the split.
        batch_size: sequences in a global batch, B; the last batch is padded to it.
        seq_len: tokens in a sequence, T; the last window is padded to it.
        max_tokens: take ``max_tokens / T`` windows (rounded down, at least one) spread evenly over the split. Default
            ``None``: all.
        document_boundaries: as for :func:`train_iterator`: with ``reset`` no earlier document helps to predict a later
            one. The targets, and so the bytes of the whole split, are the same.

    Raises:
        InputError: a size below 1, or a split without tokens.
        ValueError: another ``document_boundaries``.
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
        padding = (0, -len(starts) % batch_size)  # rows of which all is padding
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
