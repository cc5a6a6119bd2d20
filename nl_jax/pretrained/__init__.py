"""Pre-trained models of the Llama family: read as they are published, given levels, and written again."""

from nl_jax.pretrained.export import export_pretrained
from nl_jax.pretrained.features import cached_features, hidden_states, mean_features
from nl_jax.pretrained.level_stacking import StackedModel, stack_levels
from nl_jax.pretrained.loading import Pretrained, load_pretrained
from nl_jax.pretrained.stacked_level import StackedLevel

__all__ = [
    "Pretrained",
    "StackedLevel",
    "StackedModel",
    "cached_features",
    "export_pretrained",
    "hidden_states",
    "load_pretrained",
    "mean_features",
    "stack_levels",
]
