"""Validation and test batches of evaluations, and the figures of a model on them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.common.task_training import VALIDATION_SEED
from experiments.eval_runs.evaluation import Batch, Figures
from nl_jax.evaluation import accuracies

TEST_SEED = VALIDATION_SEED - 1  # never a training seed, nor that of validation data

__all__ = ["TEST_SEED", "VALIDATION_SEED", "accuracy_of"]


def accuracy_of(batches: Sequence[Batch]) -> Callable[[Any, jax.sharding.Mesh], Figures]:
    """A function that gives ``accuracy``, of single targets, and ``sequences``, of whole sequences, on the batches."""

    def figures(model: Any, mesh: jax.sharding.Mesh) -> Figures:
        found = accuracies(model, batches, mesh)
        return {"accuracy": found.positions, "sequences": found.sequences}

    return figures
