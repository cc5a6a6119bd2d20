"""Pre-trained models of the Llama family, read from the files in which they are published, and written again."""

from nl_jax.pretrained.export import export_pretrained
from nl_jax.pretrained.features import cached_features, hidden_states, mean_features
from nl_jax.pretrained.loading import Pretrained, load_pretrained

__all__ = [
    "Pretrained",
    "cached_features",
    "export_pretrained",
    "hidden_states",
    "load_pretrained",
    "mean_features",
]
