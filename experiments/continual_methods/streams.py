"""Runs a method over a stream of classes, and measures it."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.continual_methods.learner import Examples, Grams, Learner, Sizes, state_bytes
from nl_jax.data.class_streams import ClassStream
from nl_jax.evaluation.continual import accuracy_matrix, continual_metrics

PART = 512  # examples that a learner gets at a time; the last part of a task is shorter
FIRST = 512  # examples at the stream's start whose mean and variance standardise all features from then on


class Inputs(NamedTuple):
    """Labelled texts in every form, their features as the model gives them."""

    texts: tuple[str, ...]
    labels: Int[np.ndarray, "N"]
    grams: Grams
    features: Float[np.ndarray, "N width"]
    embeddings: Float[np.ndarray, "N width"]

    def take(self, rows: Int[np.ndarray, "n"]) -> "Inputs":
        """The texts at these rows, in their order."""
        texts = tuple(self.texts[row] for row in rows)
        return Inputs(texts, self.labels[rows], self.grams.take(rows), self.features[rows], self.embeddings[rows])


def standardised(inputs: Inputs, moments: tuple[tuple[np.ndarray, np.ndarray], ...]) -> Examples:
    """The examples whose features have these means and standard deviations taken out."""
    (mean, spread), (mean_0, spread_0) = moments
    features = ((inputs.features - mean) / spread).astype(np.float32)
    return Examples(inputs.texts, inputs.grams, features, ((inputs.embeddings - mean_0) / spread_0).astype(np.float32))


def moments_of(inputs: Inputs, rows: Int[np.ndarray, "n"]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Mean and standard deviation of features and embeddings over these rows.

    They are part of a learner's state, and a stream's first examples decide them: nothing later is known to it.
    """
    parts = (inputs.features[rows], inputs.embeddings[rows])
    return tuple(map(mean_and_spread, parts))


def mean_and_spread(features: Float[np.ndarray, "N width"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, the latter at least 1e-6."""
    return features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)


def run_stream(
    learner: Learner,
    stream: ClassStream,
    train: Inputs,
    test: Inputs,
    classes: int,
    seed: int,
    *,
    every_task: bool = True,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """What a learner reaches on a stream.

    Args:
        learner: the method.
        stream: the order of classes and examples.
        train: the texts to learn from.
        test: the texts to answer.
        classes: number of classes.
        seed: of the learner's random numbers.
        every_task: whether the test texts are answered after each task, or at the end only.
        progress: called after every part of the stream.

    Returns:
        ``last_accuracy`` over all test texts, ``top_3`` (the share whose class is among the three best), bytes and
        seconds; with ``every_task`` the accuracy ``matrix`` and all `continual_metrics`.
    """
    moments = moments_of(train, np.concatenate(stream.rows)[:FIRST])
    answered, seen = standardised(test, moments), np.zeros(classes, bool)
    state = learner.init(Sizes(classes, train.features.shape[1], seed))
    correct, in_top, learning, answering = [], 0.0, 0.0, 0.0
    for number, rows in enumerate(stream.rows):
        started = time.perf_counter()
        for start in range(0, len(rows), PART):
            part = rows[start : start + PART]
            state = learner.learn(state, standardised(train.take(part), moments), train.labels[part])
        state = learner.end_task(state, standardised(train.take(rows), moments), train.labels[rows])
        jax.block_until_ready([leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)])
        learning += time.perf_counter() - started
        seen[train.labels[rows]] = True
        progress()
        if not (every_task or number == len(stream.rows) - 1):
            continue
        started = time.perf_counter()
        scores = np.where(seen, learner.scores(state, answered), -np.inf)
        answering = time.perf_counter() - started
        correct.append(scores.argmax(axis=1) == test.labels)
        own = np.take_along_axis(scores, test.labels[:, None], axis=1)
        in_top = float(np.mean((scores > own).sum(axis=1) < 3))
    outcome: dict[str, Any] = {
        "last_accuracy": float(np.mean(correct[-1])),
        "top_3": in_top,
        "state_bytes": state_bytes(state) + sum(array.nbytes for pair in moments for array in pair),
        "seconds_per_example": learning / sum(map(len, stream.rows)),
        "seconds_per_answer": answering / len(test.labels),
    }
    if every_task:
        outcome |= matrix_metrics(correct, stream.task_of(test.labels, classes))
    return outcome


def matrix_metrics(correct: Sequence[Bool[np.ndarray, "N"]], tasks: Int[np.ndarray, "N"]) -> dict[str, Any]:
    """All `continual_metrics`, and the rows of the accuracy ``matrix`` up to its diagonal.

    Args:
        correct: after each task, which of the test texts were answered right.
        tasks: the task of each test text.
    """
    matrix = accuracy_matrix(correct, tasks)
    rows = [row[: i + 1] for i, row in enumerate(matrix.tolist())]
    return continual_metrics(matrix, np.bincount(tasks, minlength=len(correct))) | {"matrix": rows}


def full_matrix(rows: list[list[float]]) -> Float[np.ndarray, "T T"]:
    """The accuracy matrix from its rows up to the diagonal, with NaN above it."""
    matrix = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        matrix[i, : i + 1] = row
    return matrix
