"""Generators of evaluation tasks: pure functions of a seed, in NumPy only."""

from nl_jax.tasks.babi import LABELS, Story, babi_story
from nl_jax.tasks.babilong import Hidden, babilong_sample, in_parts
from nl_jax.tasks.niah import VARIANTS, Sample, niah_sample
from nl_jax.tasks.parity import PARITY_VOCABULARY, parity_batch
from nl_jax.tasks.recall import recall_batch
from nl_jax.tasks.word_tokenizer import WordTokenizer

__all__ = [
    "LABELS",
    "PARITY_VOCABULARY",
    "VARIANTS",
    "Hidden",
    "Sample",
    "Story",
    "WordTokenizer",
    "babi_story",
    "babilong_sample",
    "in_parts",
    "niah_sample",
    "parity_batch",
    "recall_batch",
]
