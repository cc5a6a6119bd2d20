"""Pre-trained models of the Llama family: read as they are published, given levels, and written again."""

from nl_jax.pretrained.export import export_pretrained
from nl_jax.pretrained.level_stacking import StackedLevel, StackedModel, stack_levels
from nl_jax.pretrained.loading import Pretrained, load_pretrained

__all__ = ["Pretrained", "StackedLevel", "StackedModel", "export_pretrained", "load_pretrained", "stack_levels"]
