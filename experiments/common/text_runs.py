"""What launchers that train language models on text share: flags, text, batches, and training one model."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
from absl import flags
from flax import nnx

from experiments.common import launcher
from experiments.common.cms_options import cms_fields, define_cms_flags
from experiments.common.mixer_options import configuration, define_mixer_option
from experiments.common.optimizer_flags import (
    define_optimizer_flags,
    define_schedule_flags,
    optimizer_arguments,
    set_default_rates,
)
from experiments.common.path_flags import define_path
from nl_jax import InputError
from nl_jax.data import (
    BOUNDARIES,
    EvaluationSet,
    TextData,
    evaluation_batches,
    load_text_data,
    padding_share,
    train_iterator,
)
from nl_jax.models import MODEL_NAMES, PRESETS, LanguageModel, LanguageModelConfig
from nl_jax.parallel import parse_mesh, use_cpu_cores
from nl_jax.training import LevelOptimizers, Progress, TrainState, describe_training, fit, make_optimizer
from nl_jax.trees import named_leaves

VALIDATION_TOKENS = 65_536  # what the evaluations during training look at; the test split is scored whole, once
# What may change when a run goes on: it does not change the results (another mesh only rounds differently).
FREE_FLAGS = ("workdir", "mesh", "checkpoint_every", *launcher.INPUT_FLAGS)


def define_flags() -> flags.FlagValues:
    """The flags, not yet parsed."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define(define_path, "workdir", None, "Directory of the run; made if need be. Required.")
    define(flags.DEFINE_list, "models", "hope,transformer", f"Models to train, of {', '.join(MODEL_NAMES)}.")
    define(flags.DEFINE_string, "preset", "tiny", f"Size of the models: {', '.join(PRESETS)}.")
    define_mixer_option(values)
    define_cms_flags(values)
    define_data_flags(values)
    define(flags.DEFINE_integer, "steps", 400, "Optimizer steps for each model.")
    define(flags.DEFINE_integer, "batch_size", 2, "Sequences in a batch, all devices together.")
    define(flags.DEFINE_integer, "seq_len", 1024, "Tokens in a sequence.")
    define_optimizer_flags(values, default="m3")
    define_schedule_flags(values)
    define(flags.DEFINE_integer, "seed", 0, "Decides initial parameters and the order of the data.")
    define(flags.DEFINE_integer, "eval_every", 100, "Steps between evaluations.")
    define(flags.DEFINE_integer, "checkpoint_every", 100, "Steps between checkpoints.")
    define(
        flags.DEFINE_string,
        "mesh",
        None,
        "Devices, as data:2,fsdp:4,tensor:1; without it all split the batch, on CPU as many cores as divide it.",
    )
    return values


def define_data_flags(values: flags.FlagValues) -> None:
    """Those that say what text is read, and how."""

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    kinds = "plain text, .jsonl, .ndjson or .json, each also as .gz or .zst"
    define(define_path, "data", None, f"Text file or directory ({kinds}); without it Python's standard library.")
    define(flags.DEFINE_string, "text_key", "text", "Key of the text in JSON objects.")
    define(flags.DEFINE_boolean, "skip_bad", False, "Leave out, and count, what cannot be read as text.")
    define(define_path, "tokenizer", None, "Hugging Face tokenizer.json; without it bytes are the tokens.")
    flags.DEFINE_enum(
        "document_boundaries",
        "carry",
        BOUNDARIES,
        "carry: a sequence may hold several documents, and each sees those before it in the sequence, in training and "
        "in evaluation. reset: each document begins a sequence of its own and sees no other; the rest of its last "
        "sequence is padding, which the loss leaves out.",
        flag_values=values,
    )


def text_of(values: flags.FlagValues, workdir: Path) -> TextData:
    """The text that the flags name, without the directories of runs."""
    exclude = functools.partial(launcher.holds_run, workdir)
    return load_text_data(values.data, values.tokenizer, values.text_key, exclude=exclude, skip_bad=values.skip_bad)


def inputs_of(values: flags.FlagValues, data: TextData) -> dict[str, Any]:
    """Where the text is, what was read of it and what was skipped, for config.json and results.json."""
    read = None if data.summary is None else data.summary.as_json()
    return {**launcher.inputs_of(values), "read": read, "lost_share": data.lost_share}


def summary_of(values: flags.FlagValues, data: TextData) -> str:
    """One line on the text: what was read, and what becomes of it."""
    parts = [f"text: {data.summary}"]
    if data.lost_share:
        parts.append(f"the tokenizer loses {data.lost_share:.2%} of the bytes")
    if values.document_boundaries == "reset":
        parts.append(f"{padding_share(data.train, values.seq_len):.1%} of the training positions are padding")
    return "; ".join(parts)


def configurations(values: flags.FlagValues, data: TextData) -> dict[str, LanguageModelConfig]:
    """Of all models, by the flags."""
    # Attention remembers as many tokens in generation as it has seen in training.
    shape = {"vocab_size": data.tokenizer.vocab_size, "context_length": values.seq_len}
    return {
        name: configuration(values, name, values.preset, **shape, **cms_fields(values, name)) for name in values.models
    }


class Batches(NamedTuple):
    """What every model of a run gets: the same batches in the same order."""

    train: Callable[[], grain.DatasetIterator]
    validation: EvaluationSet
    test: EvaluationSet


def batches_of(values: flags.FlagValues, data: TextData, seed: int) -> Batches:
    """Batches by the flags, this process' share of those for training."""
    sizes: dict[str, Any] = {name: values[name].value for name in ("batch_size", "seq_len", "document_boundaries")}
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    train = functools.partial(train_iterator, data.train, **sizes, **process, seed=seed)
    train()
    validation = evaluation_batches(data.validation, **sizes, max_tokens=VALIDATION_TOKENS)
    return Batches(train, validation, test=evaluation_batches(data.test, **sizes))


def optimizer_of(config: LanguageModelConfig, values: flags.FlagValues, rate_factor: float = 1.0) -> LevelOptimizers:
    """What the flags say that moves the parameters of each level, with both learning rates times a factor."""
    return make_optimizer(**optimizer_arguments(values, rate_factor), cms_periods=config.optimizer_periods)


def schedule_of(config: LanguageModelConfig, values: flags.FlagValues) -> str:
    """The levels that train a model, and when each is updated, as text."""
    shapes = jax.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    return describe_training(shapes, optimizer_of(config, values))


def fit_model(
    run: str,
    config: LanguageModelConfig,
    batches: Batches,
    values: flags.FlagValues,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    seed: int,
    start: LanguageModel | None = None,
    rate_factor: float = 1.0,
) -> tuple[TrainState, Progress]:
    """Trains one model below ``workdir/run`` from the parameters of ``start``, or goes on where it was stopped."""

    def init_model() -> LanguageModel:
        model = LanguageModel(config, rngs=nnx.Rngs(seed))
        known = {} if start is None else named_leaves(start)
        leaves = [known.get(path, leaf) for path, leaf in named_leaves(model).items()]
        return jax.tree.unflatten(jax.tree.structure(model), leaves)

    return fit(
        run,
        init_model,
        optimizer_of(config, values, rate_factor),
        batches.train(),
        batches.validation,
        workdir=workdir,
        mesh=mesh,
        steps=values.steps,
        eval_every=values.eval_every,
        checkpoint_every=values.checkpoint_every,
    )


def check(values: flags.FlagValues) -> jax.sharding.Mesh:
    """Checks the flags that need no data, and makes the mesh."""
    for name in ("steps", "batch_size", "seq_len", "eval_every", "checkpoint_every"):
        launcher.check_range(values, name, 1)
    if "seed" in values:
        launcher.check_range(values, "seed", 0, 2**31 - 1)
    set_default_rates(values)
    if "models" in values:
        launcher.check_names("models", values.models, MODEL_NAMES, required=True)
    if values.mesh is None:
        use_cpu_cores(values.batch_size)
    mesh = parse_mesh(values.mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if values.batch_size % parts:
        raise InputError(
            f"--batch_size={values.batch_size}: expected a multiple of {parts}, among which the mesh splits it"
        )
    return mesh
