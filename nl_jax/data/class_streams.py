"""Streams of labelled texts in which classes arrive one group after the other, each example once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from nl_jax.data.labelled import LabelledData
from nl_jax.errors import InputError

ORDERS = ("mixed", "domains")


class ClassStream(NamedTuple):
    """The order in which a learner sees the classes and examples of a data set.

    A task is a group of classes that arrive together. Learners are told neither where a task ends nor, when they
    answer, from which task a text comes.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.data import class_stream
        >>> labels = np.array([0, 1, 2, 3, 0])
        >>> stream = class_stream(labels, tasks=[(0, 1), (2, 3)], seed=0)
        >>> stream.tasks, stream.task_of(labels, classes=4).tolist()
        (((0, 1), (2, 3)), [0, 0, 1, 1, 0])
    """

    tasks: tuple[tuple[int, ...], ...]  # the classes of each task
    rows: tuple[Int[np.ndarray, "n"], ...]  # of each part of the stream: rows of the training split, in their order

    def task_of(self, labels: Int[np.ndarray, "N"], classes: int) -> Int[np.ndarray, "N"]:
        """The task of each label, of so many classes; -1 for a class of no task."""
        task_of_class = np.full(classes, -1)
        for number, group in enumerate(self.tasks):
            task_of_class[list(group)] = number
        return task_of_class[labels]


def class_tasks(data: LabelledData, order: str, tasks: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Groups all classes into tasks.

    Args:
        data: the labelled texts.
        order: "mixed" cuts a random order of all classes; "domains" makes each domain a task, in random order.
        tasks: number of tasks, which must divide the number of classes in a mixed order; ignored for domains.
        seed: of the order.

    Raises:
        InputError: if the number of tasks does not fit, or the data set has no domains.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.data import LabelledData, LabelledTexts, class_tasks
        >>> texts = LabelledTexts(("hi", "bye", "yes", "no"), np.arange(4))
        >>> data = LabelledData("answers", ("hi", "bye", "yes", "no"), texts, texts, {}, {})
        >>> tasks = class_tasks(data, "mixed", tasks=2, seed=0)
        >>> [len(task) for task in tasks], sorted(sum(tasks, ()))
        ([2, 2], [0, 1, 2, 3])
    """
    random = np.random.default_rng((seed, 1))
    if order == "domains":
        if not data.domains:
            raise InputError(f"order=domains: {data.name} has no domains; expected mixed")
        names = list(data.domains)
        return tuple(data.domains[names[i]] for i in random.permutation(len(names)))
    count = len(data.classes)
    if not (2 <= tasks <= count) or count % tasks:
        raise InputError(f"tasks={tasks}: expected a divisor of the {count} classes of {data.name}, from 2")
    classes = random.permutation(count).reshape(tasks, -1)
    return tuple(tuple(map(int, group)) for group in classes)


def class_stream(
    labels: Int[np.ndarray, "N"], tasks: Sequence[Sequence[int]], seed: int, *, shuffled: bool = False
) -> ClassStream:
    """The stream of all examples, class group by class group; within a group their order is random.

    Args:
        labels: the class of each example.
        tasks: the classes of each task.
        seed: of the order of the examples.
        shuffled: as a control, the examples of all tasks come in one random order, cut into as many parts of the same
            sizes.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.data import class_stream
        >>> stream = class_stream(np.array([0, 1, 2, 3, 0]), tasks=[(0, 1), (2, 3)], seed=0)
        >>> [sorted(rows.tolist()) for rows in stream.rows]  # first all of classes 0 and 1
        [[0, 1, 4], [2, 3]]
    """
    random = np.random.default_rng((seed, 2))
    rows = [random.permutation(np.flatnonzero(np.isin(labels, group))) for group in tasks]
    if shuffled:
        ends = np.cumsum([len(part) for part in rows])[:-1]
        rows = np.split(random.permutation(np.concatenate(rows)), ends)
    return ClassStream(tuple(tuple(group) for group in tasks), tuple(rows))
