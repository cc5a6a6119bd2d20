"""Bits per byte of methods that everyone knows, to hold a language model's figure against."""

import gzip

import numpy as np

from nl_jax.errors import InputError

_CHUNK = 1 << 22  # pairs counted at a time, which bounds the memory of counting


def gzip_bits_per_byte(text: bytes) -> float:
    """Bits that ``gzip -9`` takes per byte of ``text``, header included; ``InputError`` if ``text`` is empty."""
    _check_not_empty(text)
    return 8 * len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text)


def bigram_bits_per_byte(train: bytes, test: bytes) -> float:
    r"""Cross-entropy of a byte-bigram model of ``train`` on ``test``, in bits per byte; the first byte by its unigram.

    Counts are smoothed by Witten and Bell's rule, which has nothing to tune: with :math:`c(a, b)` the count of a pair,
    :math:`c(a)` its sum and :math:`t(a)` the number of distinct bytes seen after :math:`a`,

    .. math:: p(b | a) = \frac{c(a, b) + t(a)\, p(b)}{c(a) + t(a)}, \qquad p(b) = \frac{c(b) + 1}{|train| + 256}

    and :math:`p(b | a) = p(b)` where nothing was seen after :math:`a`.

    Raises:
        InputError: ``test`` is empty.
    """
    _check_not_empty(test)
    unigram = np.bincount(np.frombuffer(train, np.uint8), minlength=256) + 1.0
    unigram /= unigram.sum()
    pairs = _count_pairs(train)
    distinct = (pairs > 0).sum(1, keepdims=True)
    total = pairs.sum(1, keepdims=True) + distinct
    bigram = np.where(total > 0, (pairs + distinct * unigram) / np.maximum(total, 1), unigram)
    bits = -np.log2(unigram[test[0]]) - (_count_pairs(test) * np.log2(bigram)).sum()
    return float(bits / len(test))


def _count_pairs(text: bytes) -> np.ndarray:
    """``[256, 256]``: how often the byte of the column follows the byte of the row."""
    codes = np.frombuffer(text, np.uint8)
    counts = np.zeros(256 * 256, np.int64)
    for start in range(0, len(codes) - 1, _CHUNK):
        chunk = codes[start : start + _CHUNK + 1].astype(np.int64)
        counts += np.bincount(chunk[:-1] * 256 + chunk[1:], minlength=256 * 256)
    return counts.reshape(256, 256)


def _check_not_empty(text: bytes) -> None:
    if not text:
        raise InputError("text to score: empty; expected at least one byte")
