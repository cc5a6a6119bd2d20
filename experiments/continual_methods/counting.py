"""Methods that count word n-grams by class: naive Bayes, its complement, and the cosine to a class's TF-IDF sum.

The counts are a Hebbian matrix memory of bags of words: each text adds ``label ⊗ counts``. Nothing is ever lost in it,
whatever the order.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.continual_methods.learner import BUCKETS, Examples, Grams, Learner, Scores, Sizes


class Counts(NamedTuple):
    """What counting methods remember."""

    grams: Int[np.ndarray, "buckets classes"]  # how often each n-gram was in texts of each class
    texts: Int[np.ndarray, "buckets"]  # number of texts with each n-gram
    labels: Int[np.ndarray, "classes"]  # number of texts of each class


def _init(sizes: Sizes) -> Counts:
    zeros = np.zeros((BUCKETS, sizes.classes), np.uint32)
    return Counts(zeros, np.zeros(BUCKETS, np.uint32), np.zeros(sizes.classes, np.int64))


def _learn(state: Counts, examples: Examples, labels: Int[np.ndarray, "N"]) -> Counts:
    grams, texts = state.grams.copy(), state.texts.copy()
    of_text = examples.grams.text_of
    np.add.at(grams, (examples.grams.ids, labels[of_text]), 1)
    distinct = np.unique(of_text * BUCKETS + examples.grams.ids) % BUCKETS
    np.add.at(texts, distinct, 1)
    return Counts(grams, texts, state.labels + np.bincount(labels, minlength=len(state.labels)))


def _sum_over_texts(grams: Grams, table: Callable[[Int[np.ndarray, "n"]], Float[np.ndarray, "n classes"]]) -> Scores:
    """For each text the sum of ``table``'s rows over its n-grams; the table is asked once for each n-gram."""
    ids, place = np.unique(grams.ids, return_inverse=True)
    return np.add.reduceat(table(ids)[place], grams.starts, axis=0)


def naive_bayes(smoothing: float) -> Learner:
    """Multinomial naive Bayes without class prior: the log-likelihood of the text's n-grams."""

    def scores(state: Counts, examples: Examples) -> Scores:
        buckets = np.count_nonzero(state.texts)
        total = np.log(state.grams.sum(axis=0) + smoothing * buckets)
        return _sum_over_texts(examples.grams, lambda ids: np.log(state.grams[ids] + smoothing) - total)

    return Learner(_init, _learn, scores)


def complement_naive_bayes(smoothing: float) -> Learner:
    """Complement naive Bayes (Rennie et al. 2003): how little the text looks like texts of all other classes."""

    def scores(state: Counts, examples: Examples) -> Scores:
        totals = state.grams.sum(axis=0, dtype=np.float64)
        buckets = np.count_nonzero(state.texts)
        rest = np.log(totals.sum() - totals + smoothing * buckets)

        def table(ids: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n classes"]:
            own = state.grams[ids].astype(np.float64)
            return rest - np.log(own.sum(axis=1, keepdims=True) - own + smoothing)

        return _sum_over_texts(examples.grams, table)

    return Learner(_init, _learn, scores)


def tfidf_mean() -> Learner:
    """The cosine of the text's TF-IDF vector to the sum of those of each class; the IDF is that of the texts so far."""

    def scores(state: Counts, examples: Examples) -> Scores:
        number = state.labels.sum()
        idf = np.log((1 + number) / (1 + state.texts)) + 1
        square = np.zeros(len(state.labels))
        for part in np.array_split(np.arange(BUCKETS), 16):
            square += ((idf[part, None] * state.grams[part]) ** 2).sum(axis=0)
        length = np.sqrt(np.maximum(square, 1e-12))
        return _sum_over_texts(examples.grams, lambda ids: idf[ids, None] ** 2 * state.grams[ids] / length)

    return Learner(_init, _learn, scores)
