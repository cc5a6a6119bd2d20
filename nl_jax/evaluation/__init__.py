"""Metrics of a model (bits per byte, accuracy), and baselines to compare bits per byte with."""

from nl_jax.evaluation.accuracy import Accuracies, accuracies, accuracy
from nl_jax.evaluation.baselines import bigram_bits_per_byte, gzip_bits_per_byte
from nl_jax.evaluation.continual import accuracy_matrix, continual_metrics, forgetting, forgetting_beyond
from nl_jax.evaluation.likelihood import bits_by_position, evaluate, octaves

__all__ = [
    "Accuracies",
    "accuracies",
    "accuracy",
    "accuracy_matrix",
    "bigram_bits_per_byte",
    "bits_by_position",
    "continual_metrics",
    "evaluate",
    "forgetting",
    "forgetting_beyond",
    "gzip_bits_per_byte",
    "octaves",
]
