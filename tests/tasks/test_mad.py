"""MAD's tasks: every batch against the rules, written down a second time, and shares against probabilities."""

import inspect
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import InputError
from nl_jax.tasks import (
    compression_batch,
    fuzzy_recall_batch,
    in_context_recall_batch,
    memorization_batch,
    noisy_recall_batch,
    selective_copying_batch,
)

TASKS = {
    "in_context_recall": in_context_recall_batch,
    "noisy_recall": noisy_recall_batch,
    "fuzzy_recall": fuzzy_recall_batch,
    "selective_copying": selective_copying_batch,
    "compression": compression_batch,
    "memorization": memorization_batch,
}
seeds = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 10**6))
fast = settings(deadline=None, max_examples=40)


def checked(batch, count, length, vocab):
    """The rows of a batch, as (inputs, targets, mask) of plain numbers."""
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "inputs": ((count, length), np.int32),
        "targets": ((count, length), np.int32),
        "mask": ((count, length), np.float32),
    }
    for name in ("inputs", "targets"):
        assert 0 <= batch[name].min() <= batch[name].max() < vocab
    assert set(np.unique(batch["mask"])) <= {0, 1}
    assert not np.any(batch["targets"][batch["mask"] == 0])
    return zip(*(array.tolist() for array in batch.values()), strict=True)


def next_tokens(tokens, targets):
    """The sequence with its last token, if targets are next tokens."""
    assert targets[:-1] == tokens[1:]
    return [*tokens, targets[-1]]


@fast
@given(seeds, st.integers(1, 3), st.integers(2, 20), st.integers(4, 20), st.integers(0, 6), st.floats(0, 1))
def test_recall(seed, count, pairs, ids, noise_vocab, noise):
    """Both recall tasks; without ids of noise it is the plain one."""
    sizes = {"batch_size": count, "seq_len": 2 * pairs, "vocab_size": ids + noise_vocab}
    make = noisy_recall_batch if noise_vocab else in_context_recall_batch
    sizes |= {"noise_vocab": noise_vocab, "noise": noise} if noise_vocab else {}
    train, test = (make(*seed, **sizes, test=test) for test in (False, True))
    np.testing.assert_array_equal(train["inputs"], test["inputs"])
    rows = [checked(batch, count, 2 * pairs - 1, ids + noise_vocab) for batch in (train, test)]
    for (tokens, targets, mask), (_, answers, asked) in zip(*rows, strict=True):
        assert set(mask) == {1}
        sequence = next_tokens(tokens, targets)
        values, noisy = {}, 0
        for i, (key, value) in enumerate(zip(sequence[::2], sequence[1::2], strict=True)):
            known = key in values
            if key >= ids:  # noise
                noisy += 1
                assert value >= ids
                assert i < pairs - 1
            else:
                assert key < ids // 2 <= value < ids
                assert values.setdefault(key, value) == value
            assert asked[2 * i] == known
            assert answers[2 * i] == (value if known else 0)
            if i > 0:
                assert asked[2 * i - 1] == 0
        assert asked[-1] == 1
        assert noisy < pairs - 1  # one pair at least is none


def test_recall_is_uniform():
    """Keys, values, the last key among those shown, and pairs that are noise."""
    batch = noisy_recall_batch(0, 0, batch_size=8000, seq_len=10, vocab_size=10, noise_vocab=4, noise=0.4)
    tokens = np.concatenate([batch["inputs"], batch["targets"][:, -1:]], axis=1).reshape(8000, 5, 2)
    keys, values = tokens[:, :4, 0], tokens[:, :4, 1]
    noise = keys >= 6
    np.testing.assert_allclose(noise.mean(0), 0.4 * 3 / 4, atol=0.025)  # of four pairs one is protected
    both = Counter(zip(keys[noise].tolist(), values[noise].tolist(), strict=True))
    np.testing.assert_allclose(
        [both[i, j] / noise.sum() for i in range(6, 10) for j in range(6, 10)], 1 / 16, atol=0.01
    )
    pairs = Counter(map(tuple, tokens[:, 0][~noise[:, 0]].tolist()))
    shares = [pairs[i, j] / (~noise[:, 0]).sum() for i in range(3) for j in range(3, 6)]
    np.testing.assert_allclose(shares, 1 / 9, atol=0.02)
    shown = [set(row[row < 6]) for row in keys]
    last = [row for row, of in zip(tokens[:, 4, 0], shown, strict=True) if of == {0, 2}]
    assert np.mean(np.asarray(last) == 0) == pytest.approx(0.5, abs=0.06)
    mask = noisy_recall_batch(0, 0, batch_size=8, seq_len=100, vocab_size=10, noise_vocab=4, noise=0.4, test=True)
    assert mask["mask"].sum() < 8 * 49


def test_default_recall_scores_56_positions():
    mask = in_context_recall_batch(0, 0, batch_size=500, test=True)["mask"]
    assert mask.sum(1).mean() == pytest.approx(56, abs=0.3)


def motifs(sequence, first_value, pad):
    """Keys and values, as tuples: each is a longest run of tokens of its kind. Padding may come before all."""
    found, i = [], 0
    while i < len(sequence) and sequence[i] == pad:
        i += 1
    while i < len(sequence):
        start, of_values = i, sequence[i] >= first_value
        while i < len(sequence) and (sequence[i] >= first_value) == of_values:
            i += 1
        found.append(tuple(sequence[start:i]))
    assert pad not in [token for motif in found for token in motif]
    return found[::2], found[1::2]


@fast
@given(seeds, st.integers(1, 3), st.integers(0, 40), st.integers(1, 3), st.integers(1, 3), st.integers(0, 8))
def test_fuzzy_recall(seed, count, more, key_motif, value_motif, ids):
    longest = key_motif + value_motif
    vocab = 2 * max(key_motif, value_motif) + 1 + ids
    sizes = {"batch_size": count, "seq_len": 3 * longest + more, "vocab_size": vocab}
    sizes |= {"key_motif": key_motif, "value_motif": value_motif}
    for test in (False, True):
        batch = fuzzy_recall_batch(*seed, **sizes, test=test)
        for tokens, targets, mask in checked(batch, count, 3 * longest + more, vocab):
            if test:
                last = targets[-1]
            else:
                assert set(mask) == {1}
                last = next_tokens(tokens, targets)[-1]
            sequence = [*tokens, last]
            pad = vocab - 1
            keys, values = motifs(sequence, pad // 2, pad)
            assert len(keys) == len(values) >= 2
            known, asked = {}, []
            for key, value in zip(keys, values, strict=True):
                assert len(set(key)) == len(key)
                assert len(key) == key_motif if test else 1 <= len(key) <= key_motif
                assert len(set(value)) == len(value) <= value_motif
                asked += [0] * len(key) + [int(key in known)] * len(value)
                assert known.setdefault(key, value) == value
            assert keys[-1] in keys[:-1]  # the probe was shown
            assert asked[-len(values[-1]) :] == [1] * len(values[-1])
            assert sequence[0] == pad  # also the longest sequence is padded
            # other pairs stand until there is no room for the longest and the probe
            written = sum(map(len, (*keys[:-1], *values[:-1])))
            probe = len(keys[-1]) + len(values[-1])
            assert written >= sizes["seq_len"] - probe - longest > written - len(keys[-2]) - len(values[-2])
            if test:
                padded = [0] * (len(sequence) - len(asked)) + asked
                assert mask == padded[1:]
                assert [t for t, m in zip(targets, mask, strict=True) if m] == [
                    t for t, m in zip(sequence, padded, strict=True) if m
                ]


def test_motifs_are_drawn_by_size_first():
    """A sequence's first pair in training and in tests: sizes are uniform, and tuples of a size."""
    for test in (False, True):
        batch = fuzzy_recall_batch(0, 0, batch_size=3000, seq_len=24, vocab_size=8, test=test)
        keys, values = [], []
        for inputs in batch["inputs"].tolist():
            k, v = motifs(inputs, 3, 7)
            keys.append(k[0])
            values.append(v[0])
        for found, ids, sizes in ((keys, 3, [3] if test else [1, 2, 3]), (values, 4, [1, 2, 3])):
            counts = Counter(map(len, found))
            assert sorted(counts) == sizes
            for size in sizes:
                assert counts[size] / 3000 == pytest.approx(1 / len(sizes), abs=0.05)
            ones = Counter(motif for motif in found if len(motif) == sizes[0])
            tuples = ids if sizes[0] == 1 else 6
            assert len(ones) == tuples
            for number in ones.values():
                assert number / counts[sizes[0]] == pytest.approx(1 / tuples, abs=0.06)


@fast
@given(seeds, st.integers(1, 3), st.integers(1, 9), st.integers(0, 30), st.integers(1, 8))
def test_selective_copying(seed, count, copied, blanks, ids):
    length = 2 * copied + 1 + blanks
    batch = selective_copying_batch(*seed, batch_size=count, seq_len=length, vocab_size=ids + 2, copied=copied)
    for tokens, targets, mask in checked(batch, count, length, ids + 2):
        mixed, copy, answers = tokens[: copied + blanks], tokens[copied + blanks], tokens[copied + blanks + 1 :]
        symbols = [token for token in mixed if token != ids]
        assert (len(symbols), copy, set(answers)) == (copied, ids + 1, {ids})
        assert mixed[-1] == symbols[-1]
        assert (targets[-copied:], mask) == (symbols, [0] * (copied + 1 + blanks) + [1] * copied)


def test_blanks_stand_before_symbols_with_equal_probability():
    batch = selective_copying_batch(0, 0, batch_size=4000, seq_len=10, vocab_size=5, copied=3)
    mixed = batch["inputs"][:, :6]
    places = np.array([np.flatnonzero(row != 3) for row in mixed]) - np.arange(3)  # blanks before each symbol
    gaps = np.diff(places, axis=1, prepend=0)
    shares = Counter(map(tuple, gaps.tolist()))
    for gap in [(3, 0, 0), (0, 3, 0), (0, 0, 3)]:
        assert shares[gap] / 4000 == pytest.approx(1 / 27, abs=0.015)
    assert shares[1, 1, 1] / 4000 == pytest.approx(6 / 27, abs=0.03)


@fast
@given(seeds, st.integers(1, 3), st.integers(2, 12), st.integers(2, 12))
def test_compression(seed, count, length, vocab):
    batch = compression_batch(*seed, batch_size=count, seq_len=length, vocab_size=vocab)
    for tokens, targets, mask in checked(batch, count, length, vocab):
        assert (targets, set(mask)) == (tokens, {1})
        assert tokens[-1] == vocab - 1
        assert vocab - 1 not in tokens[:-1]


@fast
@given(seeds, seeds, st.integers(1, 3), st.integers(1, 9), st.integers(3, 40))
def test_memorization_has_one_map(seed, other, count, pairs, vocab):
    sizes = {"seq_len": 2 * pairs, "vocab_size": vocab}
    values, first = {}, (vocab - 1) // 2
    for own, rows in ((seed, count), (other, 50)):
        batch = memorization_batch(*own, batch_size=rows, **sizes)
        for tokens, targets, mask in checked(batch, rows, 2 * pairs, vocab):
            assert mask == [0, 1] * pairs
            assert set(tokens[1::2]) == {vocab - 1}
            for key, value in zip(tokens[::2], targets[1::2], strict=True):
                assert key < first <= value < vocab - 1
                assert values.setdefault(key, value) == value
    assert len(set(values.values())) == len(values)


def test_memorization_at_its_default_size():
    batch = memorization_batch(0, 0, batch_size=500)
    keys, values = batch["inputs"][:, ::2], batch["targets"][:, 1::2]
    assert (set(keys.flat), len(set(values.flat)), values.min() >= 127) == (set(range(127)), 127, True)


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_fixed_by_seed_and_step(name):
    batches = [TASKS[name](seed, step, batch_size=2)["inputs"].tobytes() for seed in (0, 1) for step in (0, 1)]
    again = [TASKS[name](seed, step, batch_size=2)["inputs"].tobytes() for seed in (0, 1) for step in (0, 1)]
    assert batches == again
    assert len(set(batches)) == 4


@pytest.mark.parametrize("name", TASKS)
def test_sizes_below_what_a_task_needs_are_named(name):
    sizes = {p.name for p in inspect.signature(TASKS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY} - {"test"}
    for size in sizes:
        given_sizes = {"batch_size": 2, size: -1}
        with pytest.raises(InputError, match=rf"{size}=-1(\.0)?: expected"):
            TASKS[name](0, 0, **given_sizes)
    for odd in {"in_context_recall", "noisy_recall", "memorization"} & {name}:
        with pytest.raises(InputError, match="seq_len=7: expected an even number"):
            TASKS[odd](0, 0, batch_size=2, seq_len=7)
