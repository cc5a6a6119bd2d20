"""The comparison of methods on one data set: settings chosen on validation texts, then every order of the classes."""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.continual_methods.learner import state_bytes
from experiments.continual_methods.streams import FIRST, Inputs, moments_of, run_stream, standardised
from experiments.continual_methods.table import JOINT, METHODS
from nl_jax.data.class_streams import ClassStream, class_stream, class_tasks
from nl_jax.data.labelled import LabelledData

TUNING_SEED = 2**31 - 1  # of the order on which settings are chosen; never that of a final run


class Comparison(NamedTuple):
    """What all runs of a comparison share."""

    data: LabelledData
    train: Inputs
    test: Inputs
    order: str
    tasks: int

    def stream(self, labels: np.ndarray, seed: int, shuffled: bool = False) -> ClassStream:
        """The stream of a seed."""
        groups = class_tasks(self.data, self.order, self.tasks, seed)
        return class_stream(labels, groups, seed, shuffled=shuffled)


def validation_accuracy(comparison: Comparison, name: str, setting: Any) -> float:
    """The last accuracy of a method on validation texts, learned from the rest of the training texts."""
    fit, held_out = (comparison.train.take(rows) for rows in comparison.data.validation_rows())
    classes = len(comparison.data.classes)
    if name in JOINT:
        return joint_outcome(name, setting, fit, held_out, classes)["last_accuracy"]
    stream = comparison.stream(fit.labels, TUNING_SEED)
    learner = METHODS[name].make(**setting)
    outcome = run_stream(learner, stream, fit, held_out, classes, TUNING_SEED, every_task=False)
    return outcome["last_accuracy"]


def stream_outcome(comparison: Comparison, name: str, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What a method reaches on the stream of a seed, and, as ``shuffled``, with all classes mixed."""
    labels, classes = comparison.train.labels, len(comparison.data.classes)
    run = functools.partial(run_stream, train=comparison.train, test=comparison.test, classes=classes, seed=seed)
    learner = METHODS[name].make(**setting)
    outcome = run(learner, comparison.stream(labels, seed))
    shuffled = run(learner, comparison.stream(labels, seed, shuffled=True), every_task=False)
    return outcome | {"shuffled": shuffled["last_accuracy"]}


def joint_outcome(name: str, setting: float, train: Inputs, test: Inputs, classes: int) -> dict[str, Any]:
    """What a method reaches that sees all training texts at once."""
    rows = np.random.default_rng(0).permutation(len(train.labels))[:FIRST]
    moments = moments_of(train, rows)
    started = time.perf_counter()
    learned, answered = standardised(train, moments), standardised(test, moments)
    scores = JOINT[name].scores(setting, learned, train.labels, answered, classes)
    seconds = time.perf_counter() - started
    own = np.take_along_axis(scores, test.labels[:, None], axis=1)
    return {
        "last_accuracy": float(np.mean(scores.argmax(axis=1) == test.labels)),
        "top_3": float(np.mean((scores > own).sum(axis=1) < 3)),
        "state_bytes": state_bytes([train.features]),
        "seconds_per_example": seconds / len(train.labels),
        "seconds_per_answer": 0.0,
    }
