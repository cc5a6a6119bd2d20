"""Facts hidden in long text: order, places, exact length, and memory that does not grow."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import InputError
from nl_jax.tasks.babi import LABELS
from nl_jax.tasks.babilong import SHORTEST, babilong_sample, in_parts

BACKGROUND = [list(range(1000 * n, 1000 * n + 8 + n % 7)) for n in range(1, 40)]
KEPT = [ids for ids in BACKGROUND if len(ids) >= SHORTEST]


def encode(text):
    """Bytes as ids below those of the background."""
    return list(text.encode())


def sample_of(seed, index, task, length, **options):
    return babilong_sample(seed, index, task, length=length, encode=encode, background=BACKGROUND, **options)


@pytest.mark.parametrize("task", LABELS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), index=st.integers(0, 2**31 - 1), length=st.integers(400, 3000))
def test_facts_keep_their_order_in_a_text_of_exact_length(task, seed, index, length):
    sample = sample_of(seed, index, task, length, begin=" Answer:")
    pieces = list(sample.sentences())
    again = list(sample_of(seed, index, task, length, begin=" Answer:").sentences())
    assert all(np.array_equal(a, b) for a, b in zip(pieces, again, strict=True))
    assert sum(map(len, pieces)) == sample.length == length
    assert bytes(pieces[-1].tolist()).decode() == sample.story.question + " Answer:"
    facts = [bytes(piece.tolist()).decode() for piece in pieces[:-1] if piece[0] < 1000]
    assert facts == list(sample.story.facts)
    assert len(facts) <= length / 8
    around = [piece.tolist() for piece in pieces[:-1] if piece[0] >= 1000]
    if around:
        first = KEPT.index(next(ids for ids in KEPT if ids[0] == around[0][0]))
        for place, piece in enumerate(around[:-1]):
            assert piece == KEPT[(first + place) % len(KEPT)]
        last = KEPT[(first + len(around) - 1) % len(KEPT)]
        assert around[-1] == last[: len(around[-1])]


def test_facts_stand_everywhere():
    quarters = Counter()
    for index in range(200):
        position = 0
        for piece in sample_of(0, index, "qa4", 2000).sentences():
            if piece[0] < 1000 and b" is " in bytes(piece.tolist()) and piece[-1] == ord("."):
                quarters[4 * position // 2000] += 1
            position += len(piece)
    assert sum(quarters.values()) == 400
    assert all(abs(quarters[quarter] - 100) < 35 for quarter in range(4))


@pytest.mark.parametrize("size", [1, 7, 64, 5000])
def test_parts_joined_are_the_texts(size):
    texts = [list(sample_of(1, index, "qa1", 500).sentences()) for index in range(3)]
    parts = list(in_parts(texts, size))
    assert all(part.shape == (3, size) for part in parts[:-1])
    assert np.array_equal(np.concatenate(parts, axis=1), [np.concatenate(text) for text in texts])


def test_texts_of_different_lengths_are_refused():
    texts = [sample_of(0, 0, "qa1", length).sentences() for length in (500, 501)]
    with pytest.raises(ValueError, match="texts of different lengths"):
        list(in_parts(texts, 64))


def test_length_costs_no_memory():
    def peak(length):
        sample = sample_of(0, 0, "qa4", length)
        tracemalloc.start()
        assert sum(part.shape[1] for part in in_parts([sample.sentences()], 4096)) == length
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(262_144) < 1.5 * peak(16_384)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="length 20: too few tokens for a story of qa1"):
        sample_of(0, 0, "qa1", 20)
    with pytest.raises(InputError, match="background of qa1: expected a sentence of at least 10 tokens"):
        babilong_sample(0, 0, "qa1", length=500, encode=encode, background=[[1, 2]])
    with pytest.raises(InputError, match="unknown task 'qa9'"):
        sample_of(0, 0, "qa9", 500)
