"""The comparison of methods that read text: settings chosen on validation texts, then every order of the classes."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from experiments.continual_methods.comparison import TUNING_SEED
from experiments.continual_methods.learner import state_bytes
from experiments.continual_methods.streams import matrix_metrics
from experiments.continual_methods.text_learners import Pair, TextLearner
from experiments.continual_methods.text_table import LAST, TEXT_METHODS
from nl_jax.data.class_streams import ClassStream, class_stream, class_tasks
from nl_jax.data.labelled import LabelledData, LabelledTexts
from nl_jax.pretrained import Pretrained

TUNED_TASKS, TUNED_TRAIN, TUNED_TEST = 5, 30, 8  # at most: tasks, and texts of a class, on which settings are chosen


class TextComparison(NamedTuple):
    """What all runs of a comparison share."""

    data: LabelledData
    pretrained: Pretrained
    order: str
    tasks: int
    first_tasks: int | None  # only the first tasks of each order; None for all
    train_per_class: int | None  # at most; None for all
    test_per_class: int | None

    @property
    def answered(self) -> int:
        """Number of texts that are answered together: as many as keep the device busy."""
        return 32 if jax.default_backend() == "cpu" else 512


def text_validation_accuracy(comparison: TextComparison, name: str, setting: Mapping[str, Any]) -> float:
    """The last accuracy of a method on validation texts of the first tasks of an order of their own."""
    data = comparison.data
    fit, held_out = (data.train.take(rows) for rows in data.validation_rows())
    groups = class_tasks(data, comparison.order, comparison.tasks, TUNING_SEED)[:TUNED_TASKS]
    train = limited(fit, _least(comparison.train_per_class, TUNED_TRAIN), TUNING_SEED)
    test = limited(held_out, _least(comparison.test_per_class, TUNED_TEST), TUNING_SEED)
    stream = class_stream(train.labels, groups, TUNING_SEED, shuffled=TEXT_METHODS[name].shuffled)
    learner = make(comparison, name, setting, TUNING_SEED)
    return run_text_stream(learner, stream, train, test, data.classes, every_task=False)["last_accuracy"]


def text_outcome(comparison: TextComparison, name: str, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What a method reaches on the stream of a seed, with its accuracy matrix."""
    data = comparison.data
    groups = class_tasks(data, comparison.order, comparison.tasks, seed)[: comparison.first_tasks]
    train = limited(data.train, comparison.train_per_class, seed)
    learner = make(comparison, name, setting, seed)
    test = limited(data.test, _least(comparison.test_per_class, learner.tests_per_class), seed)
    stream = class_stream(train.labels, groups, seed, shuffled=TEXT_METHODS[name].shuffled)
    return run_text_stream(learner, stream, train, test, data.classes, every_task=not TEXT_METHODS[name].shuffled)


def make(comparison: TextComparison, name: str, setting: Mapping[str, Any], seed: int) -> TextLearner:
    """A learner that has seen nothing."""
    method = TEXT_METHODS[name]
    own = {key: setting[key] for key in ("batch", *method.options) if key in setting}
    blocks = tuple(range(-min(LAST, comparison.pretrained.model.config.num_layers), 0))
    levels = method.levels(blocks, **{key: value for key, value in setting.items() if key not in own})
    return method.make(comparison.pretrained, levels, answered=comparison.answered, seed=seed, **own)


def limited(texts: LabelledTexts, per_class: int | None, seed: int) -> LabelledTexts:
    """At most so many texts of each class, drawn by a seed; in their order."""
    if per_class is None:
        return texts
    random = np.random.default_rng((seed, 4))
    kept = [random.permutation(np.flatnonzero(texts.labels == label))[:per_class] for label in np.unique(texts.labels)]
    return texts.take(np.sort(np.concatenate(kept)))


def run_text_stream(
    learner: TextLearner,
    stream: ClassStream,
    train: LabelledTexts,
    test: LabelledTexts,
    classes: Sequence[str],
    *,
    every_task: bool = True,
) -> dict[str, Any]:
    """What a learner reaches on a stream: as `streams.run_stream`, but for methods that read text.

    Test texts are those of the stream's classes. Labels are read with spaces in place of underscores.
    """
    names = [name.replace("_", " ") for name in classes]
    test = test.take(np.flatnonzero(stream.task_of(test.labels, len(classes)) >= 0))
    tasks = stream.task_of(test.labels, len(classes))
    seen = np.zeros(len(classes), bool)
    correct, learning, answering, answered = [], 0.0, 0.0, 0
    for number, rows in enumerate(stream.rows):
        part = train.take(rows)
        examples: list[Pair] = [(text, names[label]) for text, label in zip(part.texts, part.labels, strict=True)]
        started = time.perf_counter()
        learner.learn(examples)
        learner.end_task(examples)
        learning += time.perf_counter() - started
        seen[part.labels] = True
        last = number == len(stream.rows) - 1
        if not (every_task or last):
            continue
        asked = np.flatnonzero(tasks <= number) if every_task else np.arange(len(tasks))
        started = time.perf_counter()
        answers = learner.predict([test.texts[i] for i in asked], [names[label] for label in np.flatnonzero(seen)])
        answering, answered = answering + time.perf_counter() - started, answered + len(asked)
        right = np.zeros(len(tasks), bool)
        right[asked] = [names[label] == answer for label, answer in zip(test.labels[asked], answers, strict=True)]
        correct.append(right)
    return _outcome(learner, correct, tasks, every_task) | {
        "seconds_per_example": learning / sum(map(len, stream.rows)),
        "seconds_per_answer": answering / answered,
    }


def _outcome(
    learner: TextLearner, correct: Sequence[np.ndarray], tasks: Int[np.ndarray, "N"], every_task: bool
) -> dict[str, Any]:
    outcome: dict[str, Any] = {
        "last_accuracy": float(np.mean(correct[-1])),
        "tests": len(tasks),
        "diverged": learner.diverged,
        "state_bytes": state_bytes(learner.state),
    }
    if every_task:
        outcome |= matrix_metrics(correct, tasks)
    return outcome


def _least(*numbers: int | None) -> int | None:
    known: Sequence[int] = [number for number in numbers if number is not None]
    return min(known) if known else None
