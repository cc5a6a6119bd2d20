"""What a method of class-incremental learning is: pure functions on a state; and the examples that it reads."""

import itertools
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

BUCKETS = 2**17  # of word n-grams; a hash decides the bucket, so that the state of a counting memory is bounded
_WORDS = re.compile(r"\w+|[^\w\s]")
State = Any
Scores = Float[np.ndarray, "N classes"]


class Grams(NamedTuple):
    """Hashed words and pairs of neighbouring words of texts, one after the other."""

    ids: Int[np.ndarray, "total"]
    starts: Int[np.ndarray, "N"]  # where each text starts in ``ids``; every text has an id at least

    @property
    def text_of(self) -> Int[np.ndarray, "total"]:
        """The text of each id."""
        return np.repeat(np.arange(len(self.starts)), np.diff(self.starts, append=len(self.ids)))

    def take(self, rows: Int[np.ndarray, "n"]) -> "Grams":
        """The n-grams of the texts at these rows, in their order."""
        lengths = np.diff(self.starts, append=len(self.ids))[rows]
        starts = np.cumsum(lengths) - lengths
        places = np.repeat(self.starts[rows] - starts, lengths) + np.arange(lengths.sum())
        return Grams(self.ids[places], starts)


def grams_of(texts: Sequence[str]) -> Grams:
    """The n-grams of texts: lower-case words and punctuation marks, pairs of neighbours, and one id for the text."""
    ids: list[int] = []
    starts: list[int] = []
    for text in texts:
        starts.append(len(ids))
        words = _WORDS.findall(text.lower())
        pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
        ids.extend(zlib.crc32(gram.encode()) % BUCKETS for gram in ("", *words, *pairs))
    return Grams(np.array(ids, np.int64), np.array(starts, np.int64))


class Examples(NamedTuple):
    """Texts in every form that a method may read."""

    texts: tuple[str, ...]
    grams: Grams
    features: Float[np.ndarray, "N width"]  # mean hidden state of the chosen layer, standardised
    embeddings: Float[np.ndarray, "N width"]  # mean input embedding, standardised

    def take(self, rows: Int[np.ndarray, "n"]) -> "Examples":
        """The examples at these rows, in their order."""
        texts = tuple(self.texts[row] for row in rows)
        return Examples(texts, self.grams.take(rows), self.features[rows], self.embeddings[rows])


class Sizes(NamedTuple):
    """What a method must know to make its state."""

    classes: int
    width: int  # of the features
    seed: int


class Learner(NamedTuple):
    """A method of class-incremental learning.

    Attributes:
        init: ``init(sizes)`` returns the state of a learner that has seen nothing.
        learn: ``learn(state, examples, labels)`` returns the state after a part of the stream, read once.
        scores: ``scores(state, examples)`` returns a score for each class; the largest one of a class already seen is
            the answer.
        end_task: ``end_task(state, examples, labels)`` is called with all examples of a task at its end; only methods
            that must be told about tasks use it.
    """

    init: Callable[[Sizes], State]
    learn: Callable[[State, Examples, Int[np.ndarray, "N"]], State]
    scores: Callable[[State, Examples], Scores]
    end_task: Callable[[State, Examples, Int[np.ndarray, "N"]], State] = lambda state, *_: state


def state_bytes(state: State) -> int:
    """Bytes of all arrays of a state."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))


def one_hot(labels: Int[np.ndarray, "N"], classes: int, dtype: Any = np.float32) -> Float[np.ndarray, "N classes"]:
    """A row for each label, 1 at its class."""
    return np.eye(classes, dtype=dtype)[labels]


def log_softmax(scores: Scores) -> Scores:
    """Normalised log-probabilities."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
