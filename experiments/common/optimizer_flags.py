"""The flags of the optimizer, its learning rates and their schedule."""

from typing import Any

from absl import flags

from experiments.common import launcher
from nl_jax.training import OPTIMIZERS, SCHEDULES, peak_rates

RATES = ("learning_rate", "matrix_learning_rate")


def define_optimizer_flags(values: flags.FlagValues, default: str = "adamw") -> None:
    """Adds --optimizer and its learning rates."""

    def rates(name: str) -> str:
        vector, matrix = peak_rates(name)
        return f"{name} {vector:g}" if vector == matrix else f"{name} {vector:g} and {matrix:g}"

    optimizer = (
        "The optimizer of hidden matrices. AdamW updates all other parameters (embeddings, the output head, scales, "
        "biases). Default peak learning rates, of all other parameters and of hidden matrices: "
        f"{', '.join(map(rates, OPTIMIZERS))}."
    )
    flags.DEFINE_enum("optimizer", default, OPTIMIZERS, optimizer, flag_values=values)
    others = "Peak learning rate of all parameters but hidden matrices. Default: the optimizer's."
    hidden = "Peak learning rate of hidden matrices. Default: the optimizer's; with adamw --learning_rate."
    flags.DEFINE_float("learning_rate", None, others, flag_values=values)
    flags.DEFINE_float("matrix_learning_rate", None, hidden, flag_values=values)


def set_default_rates(values: flags.FlagValues) -> None:
    """Sets learning rates that are not given to their defaults, so that the configuration of the run holds them."""
    rates = peak_rates(values.optimizer, values.learning_rate, values.matrix_learning_rate)
    for name, rate in zip(RATES, rates, strict=True):
        values[name].value = rate
        launcher.check_range(values, name, 1e-12, 1e3)


def define_schedule_flags(values: flags.FlagValues) -> None:
    """Adds --schedule and --warmup_steps."""
    schedule = (
        f"Learning rates after the warm-up, one of {', '.join(SCHEDULES)}. Only a run whose rate is constant so far "
        "(constant, or wsd before the decay in its last fifth) can be given more --steps."
    )
    warmup = "Steps until the peak learning rate. Default: a tenth of --steps with cosine, else 100."
    flags.DEFINE_enum("schedule", "cosine", SCHEDULES, schedule, flag_values=values)
    flags.DEFINE_integer("warmup_steps", None, warmup, lower_bound=0, flag_values=values)


def optimizer_arguments(values: flags.FlagValues, rate_factor: float = 1.0) -> dict[str, Any]:
    """The arguments of `make_optimizer` that are flags, with both learning rates multiplied by a factor."""
    names = ("optimizer", "steps", "warmup_steps", "schedule")
    given: dict[str, Any] = {name: values[name].value for name in (*RATES, *names) if name in values}
    return given | {name: rate_factor * given[name] for name in RATES}
