"""Generators of evaluation tasks: pure functions of a seed, in NumPy only."""

from nl_jax.tasks.formal_languages import LANGUAGES, formal_language_batch
from nl_jax.tasks.function_classes import FUNCTION_CLASSES, draw_examples
from nl_jax.tasks.mad import (
    compression_batch,
    fuzzy_recall_batch,
    in_context_recall_batch,
    memorization_batch,
    noisy_recall_batch,
    selective_copying_batch,
)
from nl_jax.tasks.parity import PARITY_VOCABULARY, parity_batch
from nl_jax.tasks.recall import recall_batch

__all__ = [
    "FUNCTION_CLASSES",
    "LANGUAGES",
    "PARITY_VOCABULARY",
    "compression_batch",
    "draw_examples",
    "formal_language_batch",
    "fuzzy_recall_batch",
    "in_context_recall_batch",
    "memorization_batch",
    "noisy_recall_batch",
    "parity_batch",
    "recall_batch",
    "selective_copying_batch",
]
