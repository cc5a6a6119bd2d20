"""Figures to judge a model by."""

from nl_jax.evaluation.closed_form import forward_flops
from nl_jax.evaluation.flops import Flops, count_flops
from nl_jax.evaluation.yardsticks import bigram_bits_per_byte, gzip_bits_per_byte

__all__ = ["Flops", "bigram_bits_per_byte", "count_flops", "forward_flops", "gzip_bits_per_byte"]
