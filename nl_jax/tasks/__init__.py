"""Generators of evaluation tasks: pure functions of a seed, in NumPy only."""

from nl_jax.tasks.babi import LABELS, Story, babi_story
from nl_jax.tasks.babilong import Hidden, babilong_sample, in_parts
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
from nl_jax.tasks.niah import VARIANTS, Sample, niah_sample
from nl_jax.tasks.parity import PARITY_VOCABULARY, parity_batch
from nl_jax.tasks.recall import recall_batch
from nl_jax.tasks.word_tokenizer import WordTokenizer

__all__ = [
    "FUNCTION_CLASSES",
    "LABELS",
    "LANGUAGES",
    "PARITY_VOCABULARY",
    "VARIANTS",
    "Hidden",
    "Sample",
    "Story",
    "WordTokenizer",
    "babi_story",
    "babilong_sample",
    "compression_batch",
    "draw_examples",
    "formal_language_batch",
    "fuzzy_recall_batch",
    "in_context_recall_batch",
    "in_parts",
    "memorization_batch",
    "niah_sample",
    "noisy_recall_batch",
    "parity_batch",
    "recall_batch",
    "selective_copying_batch",
]
