"""Baselines for the bits per byte of a language model: gzip, and a byte-bigram model."""

import gzip

import numpy as np

from nl_jax.errors import InputError

_CHUNK = 1 << 22  # number of pairs counted at a time, which bounds the memory of counting


def gzip_bits_per_byte(text: bytes) -> float:
    """Bits per byte of ``text`` compressed by ``gzip -9``, header included.

    Raises:
        InputError: if ``text`` is empty.

    Examples:
        >>> from nl_jax.evaluation import gzip_bits_per_byte
        >>> gzip_bits_per_byte(b"a" * 10_000) < 0.1
        True
    """
    _check_not_empty(text)
    return 8 * len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text)


def bigram_bits_per_byte(train: bytes, test: bytes) -> float:
    r"""Cross-entropy on ``test``, in bits per byte, of a byte-bigram model estimated from ``train``.

    Counts are smoothed by the rule of Witten and Bell, which has no hyper-parameters. With :math:`c(a, b)` the count of
    a pair, :math:`c(a)` its sum over b, and :math:`t(a)` the number of distinct bytes that follow :math:`a`,

    .. math:: p(b | a) = \frac{c(a, b) + t(a)\, p(b)}{c(a) + t(a)}, \qquad p(b) = \frac{c(b) + 1}{|train| + 256}

    and :math:`p(b | a) = p(b)` if no byte follows :math:`a` in ``train``. The first byte of ``test`` is predicted by
    :math:`p(b)`.

    Raises:
        InputError: if ``test`` is empty.

    Examples:
        >>> from nl_jax.evaluation import bigram_bits_per_byte
        >>> bigram_bits_per_byte(b"ab" * 5_000, b"ab" * 100) < 0.1
        True
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
    """Counts of byte pairs, ``[256, 256]``: how often the byte of the column follows the byte of the row."""
    codes = np.frombuffer(text, np.uint8)
    counts = np.zeros(256 * 256, np.int64)
    for start in range(0, len(codes) - 1, _CHUNK):
        chunk = codes[start : start + _CHUNK + 1].astype(np.int64)
        counts += np.bincount(chunk[:-1] * 256 + chunk[1:], minlength=256 * 256)
    return counts.reshape(256, 256)


def _check_not_empty(text: bytes) -> None:
    if not text:
        raise InputError("text to score: empty; expected at least one byte")
