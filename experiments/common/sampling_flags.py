"""The flags that say how text is sampled from a model."""

from typing import Any

from absl import flags

from experiments.common import launcher
from nl_jax import InputError


def define_sampling_flags(values: flags.FlagValues) -> None:
    """Adds --temperature, --top_k, --top_p, --stop and --seed."""
    text = "Below 1 sharpens the distribution; 0 takes the likeliest token."
    flags.DEFINE_float("temperature", 0.8, text, flag_values=values)
    text = "Draw from this many of the likeliest tokens; 0 for all."
    flags.DEFINE_integer("top_k", 0, text, flag_values=values)
    text = "Draw from the likeliest tokens that together have this probability."
    flags.DEFINE_float("top_p", 1.0, text, flag_values=values)
    text = "Text that ends the answer, and is not printed; may be given several times."
    flags.DEFINE_multi_string("stop", [], text, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Decides the sample.", flag_values=values)


def sampling_options(values: flags.FlagValues) -> dict[str, Any]:
    """The options of `nl_jax.streaming.generation.sample` that the flags give; `InputError` for a bad one."""
    launcher.check_range(values, "temperature", 0)
    launcher.check_range(values, "top_k", 0)
    launcher.check_range(values, "seed", 0, 2**31 - 1)
    if not 0 < values.top_p <= 1:
        raise InputError(f"--top_p={values.top_p}: expected a number above 0 and at most 1")
    if "" in values.stop:
        raise InputError("--stop=: expected some text")
    names = ("temperature", "top_p", "seed")
    return {name: getattr(values, name) for name in names} | {"top_k": values.top_k or None}
