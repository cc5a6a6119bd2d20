"""Models and their named configurations."""

from nl_jax.models.configs import MODEL_NAMES, PRESETS, count_parameters, named_config
from nl_jax.models.language_model import LanguageModel, LanguageModelConfig

__all__ = ["MODEL_NAMES", "PRESETS", "LanguageModel", "LanguageModelConfig", "count_parameters", "named_config"]
