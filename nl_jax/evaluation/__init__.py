"""Figures to judge a model by."""

from nl_jax.evaluation.yardsticks import bigram_bits_per_byte, gzip_bits_per_byte

__all__ = ["bigram_bits_per_byte", "gzip_bits_per_byte"]
