"""Pre-trained models of the Llama family, read from the files in which they are published, and written again."""

from nl_jax.pretrained.export import export_pretrained
from nl_jax.pretrained.loading import Pretrained, load_pretrained

__all__ = ["Pretrained", "export_pretrained", "load_pretrained"]
