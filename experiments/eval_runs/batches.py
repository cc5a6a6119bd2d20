"""Validation and test batches of evaluations, and the figures of a model on them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.common.task_training import VALIDATION_SEED
from experiments.eval_runs.evaluation import Batch, Figures
from nl_jax.evaluation import accuracies

TEST_SEED = VALIDATION_SEED - 1  # never a training seed, nor that of validation data

__all__ = ["TEST_SEED", "VALIDATION_SEED", "accuracy_of", "padded", "reading", "split"]


def accuracy_of(batches: Sequence[Batch]) -> Callable[[Any, jax.sharding.Mesh], Figures]:
    """A function that gives three figures on the batches.

    They are ``accuracy``, of single targets, ``sequences``, of whole sequences, and ``classes``, of each id's targets.
    """

    def figures(model: Any, mesh: jax.sharding.Mesh) -> Figures:
        found = accuracies(model, batches, mesh)
        return {"accuracy": found.positions, "sequences": found.sequences, "classes": found.classes}

    return figures


def reading(batch: Batch) -> Batch:
    """The batch with what a model that learns in context learns from: the next symbols, and never the targets.

    Positions with mask 1 are symbols.
    """
    return batch | {"read_mask": np.pad(batch["mask"][:, 1:], ((0, 0), (0, 1)))}


def padded(batch: Batch, length: int) -> Batch:
    """The batch with positions at the end that do not count, so that batches of several tasks share one program."""
    more = length - batch["inputs"].shape[1]
    return {name: np.pad(array, ((0, 0), (0, more))) for name, array in batch.items()}


def split(sequences: Batch, size: int) -> Iterator[Batch]:
    """Yields batches of equal size, so that there is one program; copies with mask 0 fill up the last batch."""
    count = len(sequences["inputs"])
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        batch = {name: array[np.where(rows < count, rows, start)] for name, array in sequences.items()}
        yield batch | {"mask": batch["mask"] * (rows < count)[:, None].astype(np.float32)}
