"""Mixers that are others with fewer parts, so that some of what is tested of the others holds of them, too."""

COMPOSED = ("mamba2", "gla", "dla")  # of what other mixers run
FEWER_GATES = ("linear_attention", "retnet", "linear_attention_pp", "sliding_window_attention", *COMPOSED)
