"""Models and their named configurations."""

from nl_jax.models.auto_encoder import AutoEncoder
from nl_jax.models.config import LanguageModelConfig
from nl_jax.models.language_model import LanguageModel
from nl_jax.models.observation import observe_memories
from nl_jax.models.presets import MODEL_NAMES, PRESETS, count_parameters, named_config, with_parameters
from nl_jax.models.reading import read
from nl_jax.models.vision_transformer import VisionTransformer

__all__ = [
    "MODEL_NAMES",
    "PRESETS",
    "AutoEncoder",
    "LanguageModel",
    "LanguageModelConfig",
    "VisionTransformer",
    "count_parameters",
    "named_config",
    "observe_memories",
    "read",
    "with_parameters",
]
