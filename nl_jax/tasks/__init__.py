"""Generators of evaluation tasks: pure functions of a seed, in NumPy only."""

from nl_jax.tasks.function_classes import FUNCTION_CLASSES, draw_examples
from nl_jax.tasks.parity import PARITY_VOCABULARY, parity_batch
from nl_jax.tasks.recall import recall_batch

__all__ = [
    "FUNCTION_CLASSES",
    "PARITY_VOCABULARY",
    "draw_examples",
    "parity_batch",
    "recall_batch",
]
