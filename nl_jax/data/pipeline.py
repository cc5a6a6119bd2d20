"""From text to batches: an endless, resumable iterator for training, and fixed batches for evaluation."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int

from nl_jax.data.corpus import Splits, fingerprint, load_documents, split_documents
from nl_jax.data.packing import Packed, pack, windows
from nl_jax.data.tokenizer import Tokenizer, load_tokenizer
from nl_jax.errors import InputError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TextData:
    """Everything a language-model run needs of its text.

    Attributes:
        tokenizer: what made the tokens.
        documents: the raw texts by split.
        train, validation, test: their tokens.
        fingerprint: ``documents``, ``bytes`` and ``sha256`` of all texts, for ``results.json``.
    """

    tokenizer: Tokenizer
    documents: Splits
    train: Packed
    validation: Packed
    test: Packed
    fingerprint: dict[str, int | str]

    @property
    def train_text(self) -> bytes:
        """The training texts joined: what a yardstick may learn from."""
        return b"".join(document.text for document in self.documents.train)

    @property
    def test_text(self) -> bytes:
        """The test texts joined: what a yardstick is scored on."""
        return b"".join(document.text for document in self.documents.test)


def load_text_data(path: str | None = None, tokenizer_path: str | None = None, text_key: str = "text") -> TextData:
    """Reads, splits and packs text; the split depends on the text alone, not on a seed.

    Args:
        path: as for :func:`nl_jax.data.load_documents`; default the standard library's source.
        tokenizer_path: a Hugging Face ``tokenizer.json``; default bytes.
        text_key: the key of the text in JSONL lines.

    Raises:
        InputError: as :func:`load_documents`, :func:`split_documents` and :func:`load_tokenizer` say.
    """
    tokenizer = load_tokenizer(tokenizer_path)  # first, since its errors are quick to find
    documents = load_documents(path, text_key)
    splits = split_documents(documents)
    return TextData(
        tokenizer=tokenizer,
        documents=splits,
        train=pack(splits.train, tokenizer),
        validation=pack(splits.validation, tokenizer),
        test=pack(splits.test, tokenizer),
        fingerprint=fingerprint(documents),
    )


def train_iterator(
    packed: Packed, *, batch_size: int, seq_len: int, seed: int, process_index: int = 0, process_count: int = 1
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

    Returns:
        An iterator of ``{"inputs": int32 [B / process_count, T], "targets": likewise}``, targets one token ahead. Its
        ``get_state()``, or ``grain.checkpoint.CheckpointSave(iterator)``, is all that resuming needs, the same on every
        process. The last ``(N - 1) % T`` tokens of the split are not used.

    Raises:
        InputError: a size below 1, a sequence longer than the split, ``batch_size`` not divisible by the processes.
    """
    _check_at_least_one(batch_size=batch_size, process_count=process_count)
    if seed < 0:
        raise InputError(f"--seed={seed}: expected 0 or more")
    if batch_size % process_count:
        raise InputError(f"--batch_size={batch_size}: expected a multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index={process_index}: expected 0 to {process_count - 1}")
    rows = windows(packed.tokens, seq_len)
    local = batch_size // process_count

    def read(indices: Int[np.ndarray, "B"]) -> Batch:
        sequences = rows[indices[process_index * local : (process_index + 1) * local]].astype(np.int32)
        return {"inputs": sequences[:, :-1], "targets": sequences[:, 1:]}

    # Indices are batched, not sequences, so that a process reads its own rows only.
    epochs = 2**62 // len(rows)  # as good as endless, whose length in grain overflows in batches of one
    dataset = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat(epochs).batch(batch_size).map(read)
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
    packed: Packed, *, batch_size: int, seq_len: int, max_tokens: int | None = None
) -> EvaluationSet:
    """The windows of a split in order, each token but the very first a target once; the same on every process.

    Args:
        packed: the split.
        batch_size: sequences in a global batch, B; the last batch is padded to it.
        seq_len: tokens in a sequence, T; the last window is padded to it.
        max_tokens: take ``max_tokens / T`` windows (rounded down, at least one) spread evenly over the split. Default
            ``None``: all.

    Raises:
        InputError: a size below 1, or a split without tokens.
    """
    _check_at_least_one(batch_size=batch_size, seq_len=seq_len)
    num_targets = len(packed.tokens) - 1
    if num_targets < 1:
        raise InputError("the split to evaluate on has no text; expected at least one document")
    num_windows = -(-num_targets // seq_len)
    chosen = np.arange(num_windows)
    if max_tokens is not None:
        _check_at_least_one(max_tokens=max_tokens)
        count = min(num_windows, max(1, max_tokens // seq_len))
        chosen = (2 * np.arange(count) + 1) * num_windows // (2 * count)  # the middle of each of `count` equal parts
    batches = _EvaluationBatches(packed.tokens, chosen, batch_size, seq_len)
    padding = (0, num_windows * seq_len - num_targets)
    bytes_per_window = np.pad(packed.bytes_per_token[1:], padding).reshape(num_windows, seq_len).sum(1, dtype=np.int64)
    num_tokens = np.minimum(seq_len, num_targets - chosen * seq_len).sum()
    return EvaluationSet(batches, int(bytes_per_window[chosen].sum()), int(num_tokens))


class _EvaluationBatches(Sequence[Batch]):
    def __init__(self, tokens: np.ndarray, chosen: np.ndarray, batch_size: int, seq_len: int):
        self._chosen, self._batch_size, self._seq_len, self._end = chosen, batch_size, seq_len, len(tokens)
        self._tokens = np.pad(tokens, (0, seq_len + 1))  # so that a window may start anywhere up to the end

    def __len__(self) -> int:
        return -(-len(self._chosen) // self._batch_size)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        first = index % len(self) * self._batch_size
        chosen = self._chosen[first : first + self._batch_size]
        starts = np.full(self._batch_size, self._end)  # rows that pad the batch start where all is padding
        starts[: len(chosen)] = chosen * self._seq_len
        positions = starts[:, None] + np.arange(self._seq_len + 1)
        sequences = self._tokens[positions].astype(np.int32)
        mask = (positions[:, 1:] < self._end).astype(np.float32)
        return {"inputs": sequences[:, :-1], "targets": sequences[:, 1:], "mask": mask}


def _check_at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"--{name}={size}: expected at least 1")
