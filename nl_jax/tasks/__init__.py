"""Generators of evaluation tasks: pure functions of a seed, in NumPy only."""

from nl_jax.tasks.parity import PARITY_VOCABULARY, parity_batch
from nl_jax.tasks.recall import recall_batch

__all__ = [
    "PARITY_VOCABULARY",
    "parity_batch",
    "recall_batch",
]
