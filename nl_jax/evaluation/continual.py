r"""Metrics of continual learning, from the accuracy on each task's test texts after each task.

The accuracy matrix ``R [T, T]`` has at ``[i, j]`` the accuracy on task j after task i was learned, over all classes
seen so far and without a task id; entries of tasks that are still to come (j > i) are NaN.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

Matrix = Float[np.ndarray, "T T"]


def accuracy_matrix(
    correct: Sequence[Bool[np.ndarray, "N"]], task_of_text: Int[np.ndarray, "N"]
) -> Float[np.ndarray, "T T"]:
    """The accuracy matrix from what was answered correctly.

    Args:
        correct: for each i, which of all test texts are answered correctly after task i; those of later tasks do not
            count.
        task_of_text: the task of each test text; every task has some.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.evaluation import accuracy_matrix
        >>> correct = [np.array([True, True, False]), np.array([True, False, True])]  # after task 0, after task 1
        >>> print(accuracy_matrix(correct, np.array([0, 0, 1])))
        [[1.  nan]
         [0.5 1. ]]
    """
    tasks = len(correct)
    matrix = np.full((tasks, tasks), np.nan)
    for i, answers in enumerate(correct):
        for j in range(i + 1):
            matrix[i, j] = np.mean(answers[task_of_text == j])
    return matrix


def mean_last_accuracy(matrix: Matrix) -> float:
    """The mean over tasks of the accuracy after the last task: the last accuracy where each task counts alike."""
    return float(np.mean(matrix[-1]))


def total_last_accuracy(matrix: Matrix, sizes: Sequence[int] | Int[np.ndarray, "T"]) -> float:
    """The share of all test texts answered correctly after the last task; ``sizes`` are the tasks' numbers of texts."""
    return float(np.average(matrix[-1], weights=sizes))


def average_incremental_accuracy(matrix: Matrix) -> float:
    """The mean over i of the mean accuracy, after task i, on the tasks up to i."""
    return float(np.mean([np.mean(row[: i + 1]) for i, row in enumerate(matrix)]))


def forgetting(matrix: Matrix) -> float:
    r"""The mean over all tasks but the last of the best accuracy minus that after the last task.

    .. math:: F = \frac{1}{T-1} \sum_{j<T} \left( \max_{j \le i \le T} R_{ij} - R_{Tj} \right)

    Some of it is no forgetting at all: more classes compete. `forgetting_beyond` leaves that part out.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.evaluation import forgetting
        >>> forgetting(np.array([[1.0, np.nan], [0.5, 1.0]]))  # of the first task half is lost
        0.5
    """
    if len(matrix) < 2:
        return 0.0
    return float(np.mean(np.nanmax(matrix, axis=0)[:-1] - matrix[-1, :-1]))


def forgetting_beyond(matrix: Matrix, reference: Matrix) -> float:
    """Forgetting minus that of a reference on the same stream, such as exact least squares, which forgets no example.

    What exact least squares loses on old tasks it loses because more classes compete for the answer.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.evaluation import forgetting_beyond
        >>> ours, exact = (np.array([[1.0, np.nan], [last, 1.0]]) for last in (0.5, 0.75))
        >>> forgetting_beyond(ours, exact)
        0.25
    """
    return forgetting(matrix) - forgetting(reference)


def backward_transfer(matrix: Matrix) -> float:
    """The mean over all tasks but the last of the last accuracy minus that right after the task was learned."""
    if len(matrix) < 2:
        return 0.0
    return float(np.mean(matrix[-1, :-1] - np.diagonal(matrix)[:-1]))


def newest_accuracy(matrix: Matrix) -> float:
    """The mean accuracy on a task right after it was learned: a learner that never learns does not forget either."""
    return float(np.mean(np.diagonal(matrix)))


def continual_metrics(matrix: Matrix, sizes: Sequence[int] | Int[np.ndarray, "T"]) -> dict[str, float]:
    """All metrics of a stream by name; ``sizes`` are the numbers of test texts of the tasks.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.evaluation import continual_metrics
        >>> metrics = continual_metrics(np.array([[1.0, np.nan], [0.5, 1.0]]), sizes=[10, 30])
        >>> metrics["last_accuracy"], metrics["forgetting"]
        (0.875, 0.5)
    """
    matrix = np.asarray(matrix)
    if not matrix.size or matrix.shape != (len(sizes), len(sizes)):
        raise ValueError(f"matrix has shape {matrix.shape}; expected [T, T] for the {len(sizes)} tasks of sizes")
    return {
        "last_accuracy": total_last_accuracy(matrix, sizes),
        "mean_last_accuracy": mean_last_accuracy(matrix),
        "average_incremental_accuracy": average_incremental_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "newest_accuracy": newest_accuracy(matrix),
    }
