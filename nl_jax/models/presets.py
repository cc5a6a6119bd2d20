"""Named configurations. Within a preset all models have the same width, depth and (to 3 %) number of parameters.

The paper gives sizes (760M, 1.3B) and the vocabulary (32K) but no widths. The widths here are our choice: those of
GPT-3 for these sizes, with heads of 128 channels, since the capacity of a memory grows with the square of its head size
(heads of 32 channels lost 0.2 bits per byte: BUILD_NOTES.md, D15). The hidden size of the feed-forward blocks is
computed, so that every model has the preset's number of parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
from flax import nnx

from nl_jax.errors import InputError
from nl_jax.models.config import LanguageModelConfig
from nl_jax.models.language_model import LanguageModel
from nl_jax.modules import MIXERS


@dataclass(frozen=True)
class Preset:
    """Sizes that all models of a preset share.

    ``parameters`` is the number of parameters at ``vocab_size``, embedding included. Attention without a convolution
    has ``attention_heads`` heads, since it needs more heads than memories (BUILD_NOTES.md, D15).
    """

    parameters: int
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    attention_heads: int
    remat: str = "block"


PRESETS: dict[str, Preset] = {
    "tiny": Preset(1_000_000, 257, 128, 2, 1, 4, remat="none"),
    "small": Preset(6_000_000, 257, 256, 6, 2, 4, remat="none"),
    "base": Preset(130_000_000, 32_000, 768, 12, 6, 12),
    "paper_760m": Preset(760_000_000, 32_000, 1536, 24, 12, 16),
    "paper_1_3b": Preset(1_300_000_000, 32_000, 2048, 24, 16, 16),
}
"""Sizes of models by name, from one million parameters to the paper's 760 million and 1.3 billion."""

# Hope, its variants and controls; then every mixer under its own name, followed by one feed-forward block.
MODELS: dict[str, dict[str, Any]] = {
    "hope": {"mixer": "self_modifying_titans", "cms_periods": (1, 4)},
    "hope_attention": {"mixer": "attention", "cms_periods": (1, 4)},
    "transformer": {"mixer": "attention"},
    # controls: Hope whose memories never learn in context, and a Transformer with Hope's convolution
    "hope_frozen": {
        "mixer": "self_modifying_titans",
        "cms_periods": (1, 4),
        "mixer_options": (("frozen", True),),
    },
    "transformer_conv": {"mixer": "attention", "mixer_options": (("convolution", True),)},
    **{name: {"mixer": name} for name in MIXERS},
}
MODEL_NAMES = tuple(MODELS)
"""Names of the models: Hope, its variants and controls, the Transformer, and every mixer under its own name."""
PLAIN_ATTENTION = ("transformer", "hope_attention", "attention", "sliding_window_attention")


def count_parameters(config: LanguageModelConfig, build: Callable[..., Any] = LanguageModel) -> int:
    """Number of parameters of ``build(config, rngs=rngs)``, computed from shapes alone.

    Examples:
      >>> from nl_jax.models import count_parameters, named_config
      >>> count_parameters(named_config("transformer", "tiny"))
      1000192
    """
    model = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@cache
def named_config(model: str, preset: str, vocab_size: int | None = None, **overrides: Any) -> LanguageModelConfig:
    """The configuration of a model by name, with the feed-forward size that gives the preset's parameter count.

    Args:
      model: one of ``MODEL_NAMES``, or a mixer that was added to ``nl_jax.modules.MIXERS``.
      preset: one of ``PRESETS``.
      vocab_size: number of ids of the tokenizer; None takes the preset's. Another vocabulary changes the parameter
        count by the size of its embedding.
      **overrides: any field of ``LanguageModelConfig``. If ``mlp_hidden`` is given, it is used as it is.
        ``mixer_options`` are added to the model's own.

    Raises:
      InputError: for an unknown name, or if the sizes leave no parameters for the feed-forward blocks.

    Examples:
      >>> from nl_jax.models import count_parameters, named_config
      >>> config = named_config("hope", "tiny", chunk_size=32)
      >>> config.mixer, config.width, config.cms_periods, count_parameters(config)
      ('self_modifying_titans', 128, (1, 4), 1004304)
    """
    known = MODELS | {name: {"mixer": name} for name in MIXERS if name not in MODELS}  # added since
    if model not in known:
        raise InputError(f"unknown model {model!r}; expected one of {', '.join(known)}")
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
    sizes = PRESETS[preset]
    fields: dict[str, Any] = {
        "vocab_size": sizes.vocab_size if vocab_size is None else vocab_size,
        "width": sizes.width,
        "num_layers": sizes.num_layers,
        "num_heads": sizes.attention_heads if model in PLAIN_ATTENTION else sizes.num_heads,
        "remat": sizes.remat,
        "mlp_hidden": 1,
        **known[model],
        **overrides,
    }
    options = [dict(given.get("mixer_options", ())) for given in (known[model], overrides)]
    fields["mixer_options"] = tuple((options[0] | options[1]).items())
    config = LanguageModelConfig(**fields)
    if "mlp_hidden" in overrides:
        return config
    target = sizes.parameters + (config.vocab_size - sizes.vocab_size) * config.width
    try:
        return with_parameters(config, target)
    except InputError as error:
        raise InputError(f"model {model!r}, preset {preset!r}: {error}") from error


def with_parameters(config: LanguageModelConfig, target: int) -> LanguageModelConfig:
    """The configuration with the hidden size of the feed-forward blocks that gives a number of parameters.

    The hidden size is a multiple of 8, above 2,048 of 128.

    Raises:
      InputError: if the model has more parameters without feed-forward blocks.

    Examples:
      >>> from nl_jax.models import count_parameters, named_config, with_parameters
      >>> config = with_parameters(named_config("transformer", "tiny"), 1_000_000)
      >>> config.mlp_hidden % 8, round(count_parameters(config) / 1e6, 2)
      (0, 1.0)
    """
    # the number of parameters is affine in mlp_hidden
    one, two = (count_parameters(replace(config, mlp_hidden=hidden)) for hidden in (1, 2))
    hidden = 1 + (target - one) / (two - one)
    multiple = 128 if hidden > 2048 else 8
    hidden = multiple * round(hidden / multiple)
    if hidden < 1:
        raise InputError(f"{one:,} parameters without feed-forward blocks; expected at most {target:,}")
    return replace(config, mlp_hidden=hidden)
