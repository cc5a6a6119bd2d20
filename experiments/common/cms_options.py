"""The flags --cms_levels, --cms_regime, --cms_variant, --cms_rate and --chunk_size, which say how memories learn."""

import re
from typing import Any

from absl import flags

from experiments.common import launcher
from nl_jax import InputError
from nl_jax.models.config import REGIMES, LanguageModelConfig
from nl_jax.models.presets import MODELS
from nl_jax.modules.continuum_memory import VARIANTS

IN_CONTEXT = ("16", "256", "4096")  # default periods if they count tokens
CHUNK_SIZE = 64


def define_cms_flags(values: flags.FlagValues) -> None:
    """Adds the flags."""
    levels = "Periods of the CMS levels of models with several levels (hope, hope_attention, ...), such as 16,256,4096."
    regime = "Unit of the periods: optimizer steps (outer), or tokens in context: online (first order) or meta (exact)."
    flags.DEFINE_list("cms_levels", None, levels, flag_values=values)
    flags.DEFINE_string("cms_regime", "outer", regime, flag_values=values)
    variant = (
        f"One of {', '.join(VARIANTS)}. With --cms_regime=meta nested is exact, and each further level makes it many "
        "times slower to compile; nested_first_order compiles quickly."
    )
    flags.DEFINE_string("cms_variant", "sequential", variant, flag_values=values)
    rate = "Initial learning rate of CMS blocks that learn in context, which is the length of their steps."
    chunk = "Tokens between two boundaries of the memories. Default: 64, or the shortest CMS period if that is less."
    flags.DEFINE_integer("chunk_size", None, chunk, flag_values=values)
    flags.DEFINE_float("cms_rate", LanguageModelConfig.cms_rate, rate, flag_values=values)


def cms_fields(values: flags.FlagValues, model: str, regime: str | None = None) -> dict[str, Any]:
    """Fields of a model's configuration that the flags set; raises `InputError` for invalid values.

    ``regime``, if given, replaces --cms_regime.
    """
    levels, regime = values.cms_levels, values.cms_regime if regime is None else regime
    for flag, value, allowed in (("cms_regime", regime, REGIMES), ("cms_variant", values.cms_variant, VARIANTS)):
        if value not in allowed:
            raise InputError(f"--{flag}={value}: expected one of {', '.join(allowed)}")
    launcher.check_range(values, "cms_rate", 1e-12, 1e3)
    in_context = regime != "outer"
    levels = IN_CONTEXT if levels is None and in_context else levels
    text = ",".join(levels or ())
    if levels is not None and not (levels and all(re.fullmatch("[1-9][0-9]{0,8}", level) for level in levels)):
        raise InputError(f"--cms_levels={text}: expected periods from 1, as 16,256,4096")
    fields: dict[str, Any] = {}
    if values.chunk_size is not None:
        launcher.check_range(values, "chunk_size", 1)
        fields["chunk_size"] = values.chunk_size
    if "cms_periods" not in MODELS.get(model, ()):
        return fields
    fields["cms_variant"] = values.cms_variant
    if levels is not None:
        fields["cms_periods"] = tuple(map(int, levels))
    if in_context:
        shortest = min(fields["cms_periods"])
        if any(period % shortest for period in fields["cms_periods"]):
            raise InputError(f"--cms_levels={text}: expected multiples of the shortest, {shortest}")
        if values.seq_len % shortest:
            raise InputError(f"--seq_len={values.seq_len}: expected a multiple of {shortest}, the shortest CMS level")
        size = values.chunk_size or max(size for size in range(1, CHUNK_SIZE + 1) if shortest % size == 0)
        if shortest % size:
            raise InputError(f"--chunk_size={size}: expected a divisor of {shortest}, the shortest CMS level")
        fields |= {"cms_regime": regime, "cms_rate": values.cms_rate, "chunk_size": size}
    return fields
