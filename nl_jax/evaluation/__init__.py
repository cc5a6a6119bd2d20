"""Metrics of a model (bits per byte, accuracy), and baselines to compare bits per byte with."""

from nl_jax.evaluation.accuracy import Accuracies, accuracies, accuracy
from nl_jax.evaluation.answers import label_is_right, substring_score
from nl_jax.evaluation.baselines import bigram_bits_per_byte, gzip_bits_per_byte
from nl_jax.evaluation.continual import accuracy_matrix, continual_metrics, forgetting, forgetting_beyond
from nl_jax.evaluation.likelihood import bits_by_position, evaluate, octaves
from nl_jax.evaluation.streamed import Read, greedy_answers, read_text

__all__ = [
    "Accuracies",
    "Read",
    "accuracies",
    "accuracy",
    "accuracy_matrix",
    "bigram_bits_per_byte",
    "bits_by_position",
    "continual_metrics",
    "evaluate",
    "forgetting",
    "forgetting_beyond",
    "greedy_answers",
    "gzip_bits_per_byte",
    "label_is_right",
    "octaves",
    "read_text",
    "substring_score",
]
