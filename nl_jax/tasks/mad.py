"""The six synthetic tasks of MAD (mechanistic architecture design): recall, copying, compression, memorization.

Each function generates one batch as a pure function of its arguments; each seed and step has its own random stream. It
returns ``{"inputs": int32 [B, T], "targets": int32 [B, T], "mask": float32 [B, T]}``, where the target at a position is
what the model has to answer there, and targets with mask 0 are 0 and do not count. Default sizes are those of MAD.

The three recall tasks are trained on another target than they are tested on: the next token at every position in
training; with ``test=True`` only tokens of values whose key came before in the sequence, which can be recalled.

References:
    Poli et al., `Mechanistic Design and Scaling of Hybrid Architectures <https://arxiv.org/abs/2403.17844>`_, 2024, and
    the generators in its code.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from nl_jax.errors import InputError
from nl_jax.tasks.recall import Batch

MAP_SEED = 12345  # of the map from keys to values in memorization


def in_context_recall_batch(
    seed: int, step: int, *, batch_size: int, seq_len: int = 128, vocab_size: int = 16, test: bool = False
) -> Batch:
    """Generates pairs of key and value, in which a key has the same value wherever it comes again.

    The first half of the ids are keys, the second half values. Every sequence draws a new value for each key,
    uniformly, so that two keys may share one. It has ``seq_len // 2 - 1`` pairs, whose keys are drawn uniformly with
    replacement, and then one more, whose key is drawn uniformly from those that came before.

    Args:
        seed: random seed, 0 or more.
        step: index of the batch, 0 or more.
        batch_size: number of sequences, B.
        seq_len: number of tokens in a sequence, even and at least 4; the model sees all but the last, T = seq_len - 1.
        vocab_size: number of token ids; at least 4.
        test: whether the targets are those of tests: values of keys that came before.

    Raises:
        InputError: for sizes out of range.

    Examples:
        >>> from nl_jax.tasks import in_context_recall_batch
        >>> batch = in_context_recall_batch(1, 0, batch_size=1, seq_len=12, vocab_size=6, test=True)
        >>> print(batch["inputs"][0])
        [2 5 0 4 0 4 2 5 2 5 0]
        >>> print(batch["targets"][0] * batch["mask"][0].astype(int))  # 0 where nothing is asked
        [0 0 0 0 4 0 5 0 5 0 4]
    """
    _at_least(vocab_size=(vocab_size, 4))
    return _recall(np.random.default_rng((seed, step)), batch_size, seq_len, vocab_size, test)


def noisy_recall_batch(
    seed: int,
    step: int,
    *,
    batch_size: int,
    seq_len: int = 128,
    vocab_size: int = 32,
    noise_vocab: int = 16,
    noise: float = 0.2,
    test: bool = False,
) -> Batch:
    """Generates in-context recall in which some pairs are two random ids that are neither keys nor values.

    Each pair but the last becomes noise with probability ``noise``, independently, except for one pair of each
    sequence, chosen uniformly.

    Args:
        seed, step, batch_size, seq_len, test: as for `in_context_recall_batch`. In tests noise is never a target.
        vocab_size: number of token ids; at least ``noise_vocab + 4``.
        noise_vocab: number of ids of noise, the last ones; at least 1.
        noise: probability from 0 to 1.

    Raises:
        InputError: for sizes out of range.

    Examples:
        >>> from nl_jax.tasks import noisy_recall_batch
        >>> batch = noisy_recall_batch(1, 0, batch_size=1, seq_len=12, vocab_size=10, noise_vocab=4, noise=0.5)
        >>> print(batch["inputs"][0])  # 6 to 9 are noise
        [2 5 9 6 0 4 7 9 2 5 0]
    """
    _at_least(noise_vocab=(noise_vocab, 1), vocab_size=(vocab_size, noise_vocab + 4))
    if not 0 <= noise <= 1:
        raise InputError(f"noise={noise}: expected a probability from 0 to 1")
    return _recall(np.random.default_rng((seed, step)), batch_size, seq_len, vocab_size, test, noise_vocab, noise)


def _recall(
    random: np.random.Generator,
    batch_size: int,
    seq_len: int,
    vocab_size: int,
    test: bool,
    noise_vocab: int = 0,
    noise: float = 0.0,
) -> Batch:
    _at_least(batch_size=(batch_size, 1), seq_len=(seq_len, 4))
    if seq_len % 2:
        raise InputError(f"seq_len={seq_len}: expected an even number")
    pairs, ids = seq_len // 2 - 1, vocab_size - noise_vocab
    number = ids // 2  # of keys
    every_value = random.integers(number, ids, size=(batch_size, number))  # of each key
    keys = random.integers(number, size=(batch_size, pairs))
    is_noise = random.random((batch_size, pairs)) < noise
    is_noise[np.arange(batch_size), random.integers(pairs, size=batch_size)] = False

    shown = np.any((keys[..., None] == np.arange(number)) & ~is_noise[..., None], axis=1)
    probe = np.argmax(random.random((batch_size, number)) * shown, axis=1)  # the largest of those shown is uniform
    keys = np.concatenate([keys, probe[:, None]], axis=1)
    is_noise = np.concatenate([is_noise, np.zeros((batch_size, 1), bool)], axis=1)
    tokens = np.stack([keys, np.take_along_axis(every_value, keys, axis=1)], axis=-1)
    if noise_vocab:
        tokens = np.where(is_noise[..., None], random.integers(ids, vocab_size, size=tokens.shape), tokens)
    recalled = np.zeros(tokens.shape, bool)
    recalled[..., 1] = ~is_noise & _came_before(np.where(is_noise, -1, keys))
    return _shifted(tokens.reshape(batch_size, -1), recalled.reshape(batch_size, -1), test)


def _came_before(keys: Int[np.ndarray, "B P"]) -> Bool[np.ndarray, "B P"]:
    """Whether each key stands at an earlier place of its row, too."""
    equal = keys[:, :, None] == keys[:, None, :]
    return np.any(np.tril(equal, -1), axis=-1)


def _shifted(tokens: Int[np.ndarray, "B L"], recalled: Bool[np.ndarray, "B L"], test: bool) -> Batch:
    """The batch in which every position's target is the next token; in tests only if that token can be recalled."""
    following = tokens[:, 1:]
    mask = recalled[:, 1:] if test else np.ones(following.shape, bool)
    return _batch(tokens[:, :-1], following, mask)


def _batch(inputs: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> Batch:
    return {
        "inputs": inputs.astype(np.int32),
        "targets": (targets * mask).astype(np.int32),
        "mask": mask.astype(np.float32),
    }


def fuzzy_recall_batch(
    seed: int,
    step: int,
    *,
    batch_size: int,
    seq_len: int = 128,
    vocab_size: int = 16,
    key_motif: int = 3,
    value_motif: int = 3,
    test: bool = False,
) -> Batch:
    """Generates in-context recall in which keys and values are several tokens long.

    The last id is padding; the first half of the others, rounded down, are tokens of keys, the rest of values. A key is
    an ordered tuple of different tokens: first its size is drawn, uniformly from 1 to ``key_motif``, then the tuple.
    Keys of tests have ``key_motif`` tokens. Values are drawn likewise, of sizes 1 to ``value_motif`` in both.

    One pair, the probe, is drawn first. It comes at the first place between two pairs at or after a random position,
    unless its key has come by chance before. Other pairs follow each other until fewer tokens are left than those of
    the probe and of the longest pair. The sequence ends with the probe. Padding stands before it.

    Args:
        seed, step, batch_size: as for `in_context_recall_batch`.
        seq_len: number of tokens that the model sees, T; at least ``3 * (key_motif + value_motif)``.
        vocab_size: number of token ids; at least ``2 * max(key_motif, value_motif) + 1``.
        key_motif: largest number of tokens of a key; at least 1.
        value_motif: largest number of tokens of a value; at least 1.
        test: whether keys are of the largest size, and targets are tokens of values whose key came before.

    Raises:
        InputError: for sizes out of range.

    Examples:
        >>> from nl_jax.tasks import fuzzy_recall_batch
        >>> batch = fuzzy_recall_batch(0, 0, batch_size=1, seq_len=18, vocab_size=9)
        >>> batch["inputs"].shape, batch["targets"].dtype.name
        ((1, 18), 'int32')
    """
    _at_least(
        batch_size=(batch_size, 1),
        key_motif=(key_motif, 1),
        value_motif=(value_motif, 1),
        seq_len=(seq_len, 3 * (key_motif + value_motif)),
        vocab_size=(vocab_size, 2 * max(key_motif, value_motif) + 1),
    )
    random = np.random.default_rng((seed, step))
    drawing = _Motifs(random, (vocab_size - 1) // 2, vocab_size - 1, key_motif, value_motif, test)
    tokens = np.full((batch_size, seq_len + 1), vocab_size - 1)
    recalled = np.zeros(tokens.shape, bool)
    for row in range(batch_size):
        sequence, known = _fuzzy_sequence(drawing, seq_len, key_motif + value_motif)
        tokens[row, -len(sequence) :] = sequence
        recalled[row, -len(known) :] = known
    return _shifted(tokens, recalled, test)


class _Motifs:
    """Draws keys and values of fuzzy recall: all of a batch's random numbers come in blocks, which is fast."""

    def __init__(
        self, random: np.random.Generator, keys: int, ids: int, key_motif: int, value_motif: int, test: bool
    ) -> None:
        self.random = random
        self.keys = [
            list(itertools.permutations(range(keys), size)) for size in range(key_motif if test else 1, key_motif + 1)
        ]
        self.values = [list(itertools.permutations(range(keys, ids), size)) for size in range(1, value_motif + 1)]
        self.uniform: Iterator[float] = iter(())

    def one_of(self, options: Any) -> Any:
        """An option, each with the same probability."""
        number = next(self.uniform, None)
        if number is None:
            self.uniform = iter(self.random.random(4096).tolist())
            number = next(self.uniform)
        return options[int(number * len(options))]

    def key(self) -> tuple[int, ...]:
        return self.one_of(self.one_of(self.keys))

    def value(self) -> tuple[int, ...]:
        return self.one_of(self.one_of(self.values))


def _fuzzy_sequence(drawing: _Motifs, seq_len: int, longest: int) -> tuple[list[int], list[bool]]:
    """The tokens of a sequence, without padding, and which of them belong to a value whose key came before."""
    probe = drawing.key()
    values = {probe: drawing.value()}
    end = seq_len - len(probe) - len(values[probe]) - longest  # no pair starts here or later, apart from the last
    position = drawing.one_of(range(end - longest + 1))  # the next place between two pairs is before the end
    tokens: list[int] = []
    known: list[bool] = []
    shown: set[tuple[int, ...]] = set()

    def append(key: tuple[int, ...]) -> None:
        tokens.extend((*key, *values[key]))
        known.extend([False] * len(key) + [key in shown] * len(values[key]))
        shown.add(key)

    while len(tokens) < end:
        key = probe if len(tokens) >= position and probe not in shown else drawing.key()
        if key not in values:
            values[key] = drawing.value()
        append(key)
    append(probe)
    return tokens, known


def selective_copying_batch(
    seed: int, step: int, *, batch_size: int, seq_len: int = 256, vocab_size: int = 16, copied: int = 16
) -> Batch:
    """Generates symbols scattered among blanks; after a copy token the model has to repeat them in order.

    The last id is the copy token, the one before it the blank; the symbols are drawn uniformly, with replacement, from
    the others. Each of ``seq_len - 2 * copied - 1`` blanks comes before a symbol drawn uniformly, so that the last
    symbol is followed by the copy token. Then come as many blanks as there are symbols, at which the targets are the
    symbols: the model does not see its own answers.

    Args:
        seed, step, batch_size: as for `in_context_recall_batch`.
        seq_len: number of tokens, T; at least ``2 * copied + 1``.
        vocab_size: number of token ids; at least 3.
        copied: number of symbols; at least 1.

    Raises:
        InputError: for sizes out of range.

    Examples:
        >>> from nl_jax.tasks import selective_copying_batch
        >>> batch = selective_copying_batch(0, 0, batch_size=1, seq_len=16, vocab_size=6, copied=3)
        >>> print(batch["inputs"][0])
        [4 4 4 4 4 4 3 4 2 4 4 2 5 4 4 4]
        >>> print(batch["targets"][0])
        [0 0 0 0 0 0 0 0 0 0 0 0 0 3 2 2]
    """
    _at_least(
        batch_size=(batch_size, 1),
        copied=(copied, 1),
        seq_len=(seq_len, 2 * copied + 1),
        vocab_size=(vocab_size, 3),
    )
    random = np.random.default_rng((seed, step))
    blank, copy = vocab_size - 2, vocab_size - 1
    symbols = random.integers(blank, size=(batch_size, copied))
    before = random.integers(copied, size=(batch_size, seq_len - 2 * copied - 1))  # the symbol after each blank
    blanks = np.sum(before[..., None] <= np.arange(copied), axis=1)  # up to each symbol
    inputs = np.full((batch_size, seq_len), blank)
    np.put_along_axis(inputs, blanks + np.arange(copied), symbols, axis=1)
    inputs[:, seq_len - copied - 1] = copy
    targets, mask = np.zeros_like(inputs), np.zeros_like(inputs)
    targets[:, -copied:], mask[:, -copied:] = symbols, 1
    return _batch(inputs, targets, mask)


def compression_batch(seed: int, step: int, *, batch_size: int, seq_len: int = 32, vocab_size: int = 16) -> Batch:
    """Generates random tokens, and the compression token at the end; the target is the input, at every position.

    It is for models that see the whole sequence through the state at its last position, such as
    `nl_jax.models.AutoEncoder`.

    Args:
        seed, step, batch_size: as for `in_context_recall_batch`.
        seq_len: number of tokens, T; at least 2.
        vocab_size: number of token ids, the last of which is the compression token; at least 2.

    Raises:
        InputError: for sizes out of range.

    Examples:
        >>> from nl_jax.tasks import compression_batch
        >>> batch = compression_batch(0, 0, batch_size=2, seq_len=8)
        >>> batch["inputs"].shape, batch["targets"].dtype.name
        ((2, 8), 'int32')
    """
    _at_least(batch_size=(batch_size, 1), seq_len=(seq_len, 2), vocab_size=(vocab_size, 2))
    inputs = np.random.default_rng((seed, step)).integers(vocab_size - 1, size=(batch_size, seq_len))
    inputs[:, -1] = vocab_size - 1
    return _batch(inputs, inputs, np.ones_like(inputs))


def memorization_batch(seed: int, step: int, *, batch_size: int, seq_len: int = 32, vocab_size: int = 256) -> Batch:
    """Generates keys, each followed by the insert token, at which the target is the key's value.

    The first half of the ids without the last one, rounded down, are keys; the others are values, of which each key has
    another. The map is the same for all seeds and steps, and values are never an input: weights have to store it. Keys
    are drawn uniformly with replacement. The last id is the insert token.

    Args:
        seed, step, batch_size: as for `in_context_recall_batch`.
        seq_len: number of tokens, T, even and at least 2.
        vocab_size: number of token ids; at least 3.

    Raises:
        InputError: for sizes out of range.

    Examples:
        >>> from nl_jax.tasks import memorization_batch
        >>> batch = memorization_batch(0, 0, batch_size=2, seq_len=8)
        >>> batch["inputs"].shape, batch["targets"].dtype.name
        ((2, 8), 'int32')
    """
    _at_least(batch_size=(batch_size, 1), seq_len=(seq_len, 2), vocab_size=(vocab_size, 3))
    if seq_len % 2:
        raise InputError(f"seq_len={seq_len}: expected an even number")
    number = (vocab_size - 1) // 2
    values = np.random.default_rng(MAP_SEED).permutation(np.arange(number, vocab_size - 1))
    keys = np.random.default_rng((seed, step)).integers(number, size=(batch_size, seq_len // 2))
    inputs = np.full((batch_size, seq_len), vocab_size - 1)
    inputs[:, ::2] = keys
    targets, mask = np.zeros_like(inputs), np.zeros_like(inputs)
    targets[:, 1::2], mask[:, 1::2] = values[keys], 1
    return _batch(inputs, targets, mask)


def _at_least(**sizes: tuple[int, int]) -> None:
    """Raises `InputError` for the first size below its smallest value; both are given by name."""
    for name, (size, low) in sizes.items():
        if size < low:
            raise InputError(f"{name}={size}: expected at least {low}")
