import collections
import gzip
import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nl_jax.errors import InputError
from nl_jax.evaluation import baselines, bigram_bits_per_byte, gzip_bits_per_byte

TRAIN = b"the cat sat on the mat and the rat sat on the cat"


def plain_bigram(train, test):
    """The rule of the docstring, one byte at a time."""
    unigram = collections.Counter(train)
    followers = collections.defaultdict(collections.Counter)
    for a, b in itertools.pairwise(train):
        followers[a][b] += 1

    def single(b):
        return (unigram[b] + 1) / (len(train) + 256)

    def pair(a, b):
        seen = followers[a]
        if not seen:
            return single(b)
        return (seen[b] + len(seen) * single(b)) / (sum(seen.values()) + len(seen))

    bits = -math.log2(single(test[0]))
    for a, b in itertools.pairwise(test):
        bits -= math.log2(pair(a, b))
    return bits / len(test)


@given(st.binary(max_size=60), st.binary(min_size=1, max_size=60))
@example(TRAIN, b"the dog sat on the cat")
@example(b"", b"abc")
def test_bigram_is_the_plain_rule(train, test):
    assert bigram_bits_per_byte(train, test) == pytest.approx(plain_bigram(train, test), rel=1e-12)


def test_bigram_counts_across_chunks(monkeypatch):
    whole = bigram_bits_per_byte(TRAIN, TRAIN[::-1])
    monkeypatch.setattr(baselines, "_CHUNK", 5)
    assert bigram_bits_per_byte(TRAIN, TRAIN[::-1]) == whole == pytest.approx(plain_bigram(TRAIN, TRAIN[::-1]))


@pytest.mark.parametrize("train", [b"", TRAIN])
@pytest.mark.parametrize("first", [b"t", b"z"])  # in the training text, and not
def test_bigram_probabilities_sum_to_one(train, first):
    alone = bigram_bits_per_byte(train, first)
    bits = [2 * bigram_bits_per_byte(train, first + bytes([b])) - alone for b in range(256)]
    assert sum(2.0**-bit for bit in bits) == pytest.approx(1.0)


def test_bigram_knows_what_it_has_seen():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 20_000).astype(np.uint8).tobytes()
    assert bigram_bits_per_byte(b"", noise) == pytest.approx(8.0)
    assert bigram_bits_per_byte(b"ab" * 5000, b"ab" * 100) < 0.1
    assert bigram_bits_per_byte(noise, noise[::-1]) == pytest.approx(8.0, abs=0.5)


def test_gzip():
    text = TRAIN * 20
    assert gzip_bits_per_byte(text) == 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)
    assert gzip_bits_per_byte(text) < 1.0
    noise = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8).tobytes()
    assert 8.0 < gzip_bits_per_byte(noise) < 8.2


def test_empty_text():
    with pytest.raises(InputError, match="empty"):
        gzip_bits_per_byte(b"")
    with pytest.raises(InputError, match="empty"):
        bigram_bits_per_byte(b"abc", b"")
