"""The flags of all evaluations; a preset sets the defaults of those that are not given."""

from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.common.compute_flags import define_dtype_flag
from experiments.common.mixer_options import configuration, define_mixer_option
from experiments.common.path_flags import define_workdir
from experiments.eval_runs.evaluation import Evaluation, Subtask
from nl_jax import InputError
from nl_jax.models import LanguageModelConfig, with_parameters
from nl_jax.models.presets import PLAIN_ATTENTION

QUICK, FULL = "quick", "full"
SIZES = ("width", "num_heads", "num_layers", "chunk_size")
COUNTS = (*SIZES, "attention_heads", "batch_size", "steps", "eval_every", "seeds")
RATES = ("1e-3", "3e-3", "1e-2")
MOST_WORKERS = 8  # by default, since each needs a gigabyte


def define_flags(evaluation: Evaluation) -> flags.FlagValues:
    """Defines the flags of an evaluation, without parsing them."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, f"{text}{_presets(evaluation, name)}", flag_values=values)

    define_workdir(values)
    preset = "Sets the defaults of other flags: quick takes minutes on two cores, full up to three hours."
    flags.DEFINE_enum("preset", QUICK, (QUICK, FULL), preset, flag_values=values)
    define(flags.DEFINE_list, "models", ",".join(evaluation.models), f"Models, of {', '.join(evaluation.all_models)}.")
    define(flags.DEFINE_list, "subtasks", ",".join(evaluation.names), "Columns of the table.")
    for name, (default, text) in evaluation.own_flags.items():
        define(flags.DEFINE_integer, name, default, text)
    evaluation.more_flags(values)
    rates = "Peak learning rates: the best on validation data with seed 0 is taken, of each model and subtask."
    define(flags.DEFINE_list, "learning_rates", ",".join(RATES), rates)
    define(flags.DEFINE_integer, "width", 64, "Width of the models.")
    parameters = (
        "Parameters of each model, which the hidden size of the feed-forward blocks gives; 0: that size is twice the "
        "width."
    )
    define(flags.DEFINE_integer, "parameters", 0, parameters)
    define(flags.DEFINE_integer, "num_heads", 2, "Heads of the mixers.")
    heads = f"Heads of attention without a convolution ({', '.join(PLAIN_ATTENTION)}), which needs more than memories."
    define(flags.DEFINE_integer, "attention_heads", 4, heads)
    define(flags.DEFINE_integer, "num_layers", 2, "Blocks.")
    define(flags.DEFINE_integer, "chunk_size", 8, "Tokens between two boundaries of the memories.")
    define_mixer_option(values)
    define_dtype_flag(values)
    define(flags.DEFINE_integer, "batch_size", 32, "Sequences in a batch.")
    define(flags.DEFINE_integer, "steps", 1000, "Optimizer steps of a run; the cosine ends there.")
    define(flags.DEFINE_integer, "eval_every", 100, "Steps between evaluations on validation data.")
    define(flags.DEFINE_integer, "seeds", 3, "Runs of each model and subtask, with seeds 0, 1, ...")
    workers = (
        "Processes that train at the same time, each on its share of the cores. Default: one for two cores, "
        f"{MOST_WORKERS} at most; 1 on an accelerator."
    )
    flags.DEFINE_integer("workers", None, workers, flag_values=values)
    return values


def _presets(evaluation: Evaluation, name: str) -> str:
    """What the presets set a flag to, for its help."""
    found = {preset: given[name] for preset, given in evaluation.presets.items() if name in given}
    text = ", ".join(f"{preset} {_as_text(value)}" for preset, value in found.items())
    return f" By preset: {text}." if text else ""


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def apply_preset(evaluation: Evaluation, values: flags.FlagValues) -> None:
    """Sets flags that are not given to what the preset says, and checks those that all evaluations have."""
    for name, value in evaluation.presets[values.preset].items():
        if not values[name].present:
            values[name].value = list(value) if isinstance(value, list | tuple) else value
    for name in (*COUNTS, *evaluation.own_flags):
        launcher.check_range(values, name, 1)
    launcher.check_range(values, "parameters", 0)
    launcher.check_names("models", values.models, evaluation.all_models, required=True)
    launcher.check_names("subtasks", values.subtasks, evaluation.names, required=True)
    rates_of(values)


def rates_of(values: flags.FlagValues) -> list[float]:
    """The learning rates of the grid, the middle one first; raises `InputError` for other than positive numbers."""
    try:
        rates = sorted(map(float, values.learning_rates))
    except ValueError:
        rates = []
    if not rates or len(set(rates)) < len(rates) or not all(1e-12 <= rate <= 1e3 for rate in rates):
        given = ",".join(values.learning_rates)
        raise InputError(f"--learning_rates={given}: expected distinct numbers from 1e-12 to 1e3, as 1e-3,3e-3")
    middle = rates[len(rates) // 2]
    return sorted(rates, key=lambda rate: (rate != middle, rate))


def configurations(
    evaluation: Evaluation, values: flags.FlagValues, subtask: Subtask
) -> dict[str, LanguageModelConfig]:
    """The configurations of all models for a subtask; raises `InputError` for values that do not fit."""
    sizes: dict[str, Any] = {name: values[name].value for name in SIZES} | {"mlp_hidden": 2 * values.width}
    sizes |= subtask.sizes
    found = {}
    for name in values.models:
        given = evaluation.variants.get(name, {})
        heads = {"num_heads": values.attention_heads} if given.get("model", name) in PLAIN_ATTENTION else {}
        fields: dict[str, Any] = {**sizes, **heads, **given}
        model, own = fields.pop("model", name), {**subtask.options, **fields.pop("mixer_options", {})}
        found[name] = configuration(values, model, "tiny", own=own, **fields)
        if values.parameters:
            try:
                found[name] = with_parameters(found[name], values.parameters)
            except InputError as error:
                raise InputError(f"--parameters={values.parameters}: {name} has {error}") from error
    return found
