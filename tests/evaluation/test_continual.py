"""Metrics of continual learning against sums written out, on accuracy matrices made by hand and at random."""

import numpy as np
import pytest

from nl_jax.evaluation import continual

MATRIX = np.array([[0.9, np.nan, np.nan], [0.7, 0.8, np.nan], [0.5, 0.85, 0.6]])


def test_metrics_of_a_matrix_by_hand():
    found = continual.continual_metrics(MATRIX, [10, 10, 20])
    assert found["mean_last_accuracy"] == pytest.approx((0.5 + 0.85 + 0.6) / 3)
    assert found["last_accuracy"] == pytest.approx((5 + 8.5 + 12) / 40)
    assert found["average_incremental_accuracy"] == pytest.approx((0.9 + (0.7 + 0.8) / 2 + (0.5 + 0.85 + 0.6) / 3) / 3)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.85 - 0.85)) / 2)
    assert found["backward_transfer"] == pytest.approx(((0.5 - 0.9) + (0.85 - 0.8)) / 2)
    assert found["newest_accuracy"] == pytest.approx((0.9 + 0.8 + 0.6) / 3)


def test_forgetting_beyond_a_reference_and_of_one_task():
    reference = np.array([[0.9, np.nan, np.nan], [0.8, 0.8, np.nan], [0.8, 0.7, 0.6]])
    assert continual.forgetting_beyond(MATRIX, reference) == pytest.approx(0.2 - 0.1)
    assert continual.forgetting(MATRIX[:1, :1]) == continual.backward_transfer(MATRIX[:1, :1]) == 0.0


def test_the_accuracy_matrix_counts_every_task_by_itself():
    random = np.random.default_rng(0)
    tasks = random.permutation(np.repeat(np.arange(4), 5))
    correct = random.random((4, 20)) < 0.5
    matrix = continual.accuracy_matrix(list(correct), tasks)
    for i in range(4):
        for j in range(4):
            if j > i:
                assert np.isnan(matrix[i, j])
            else:
                assert matrix[i, j] == sum(correct[i][n] for n in range(20) if tasks[n] == j) / 5
    sizes = np.bincount(tasks)
    assert continual.total_last_accuracy(matrix, sizes) == pytest.approx(correct[-1].mean())


@pytest.mark.parametrize(("shape", "tasks"), [((3, 3), 2), ((2, 3), 3), ((3,), 3), ((0, 0), 0)])
def test_a_matrix_that_does_not_fit_the_tasks_is_refused(shape, tasks):
    with pytest.raises(ValueError, match=rf"matrix has shape .* expected \[T, T\] for the {tasks} tasks"):
        continual.continual_metrics(np.ones(shape), [10] * tasks)
