"""What launchers that train language models on text share: flags, text, batches, and training one model."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
from absl import flags
from flax import nnx

from experiments.common import launcher
from experiments.common.cms_options import cms_fields, define_cms_flags
from experiments.common.compute_flags import check_batch_size, check_kernel, define_compute_flags
from experiments.common.host_flags import HOST_FLAGS, define_host_flags, hosts_of, join_hosts
from experiments.common.mixer_options import configuration, define_mixer_option
from experiments.common.optimizer_flags import (
    define_optimizer_flags,
    define_schedule_flags,
    optimizer_arguments,
    set_default_rates,
)
from experiments.common.path_flags import INPUT_FLAGS, define_path, define_workdir
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
from nl_jax.evaluation import bigram_bits_per_byte, gzip_bits_per_byte
from nl_jax.models import MODEL_NAMES, PRESETS, LanguageModel, LanguageModelConfig
from nl_jax.parallel import local_rows, parse_mesh, use_cpu_cores
from nl_jax.parallel.hosts import agree
from nl_jax.training import LevelOptimizers, Progress, TrainState, describe_training, fit, make_optimizer
from nl_jax.trees import named_leaves

VALIDATION_TOKENS = 65_536  # tokens of an evaluation during training; the whole test split is scored once, at the end
# Flags that may change when a run is resumed, since they do not change its results (of mesh and accumulate, rounding).
FREE_FLAGS = ("workdir", "mesh", "accumulate", "kernel", "profile", "checkpoint_every", *HOST_FLAGS, *INPUT_FLAGS)


def define_flags() -> flags.FlagValues:
    """The flags, not yet parsed."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define_workdir(values)
    define(flags.DEFINE_list, "models", "hope,transformer", f"Models to train, of {', '.join(MODEL_NAMES)}.")
    define(flags.DEFINE_string, "preset", "tiny", f"Size of the models: {', '.join(PRESETS)}.")
    define_mixer_option(values)
    define_cms_flags(values)
    define_compute_flags(values)
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
        flags.DEFINE_integer,
        "profile",
        None,
        "The first of three steps whose trace is recorded, for TensorBoard or Perfetto. A run that resumes after it "
        "records its next three.",
    )
    define(
        flags.DEFINE_string,
        "mesh",
        None,
        "Devices, as data:2,fsdp:2,tensor:1,sequence:2: data and fsdp split the batch, fsdp also the parameters, "
        "tensor heads, sequence tokens. Default: all split the batch, on CPU as many cores as divide it.",
    )
    define_host_flags(values)
    return values


def flags_with_seeds(text: str, defaults: Mapping[str, Any]) -> flags.FlagValues:
    """The flags with --seeds in the place of --seed, not yet parsed.

    Args:
        text: help for --seeds.
        defaults: other default values, by flag.
    """
    values = define_flags()
    del values.seed
    flags.DEFINE_integer("seeds", 3, f"{text}, with seeds 0, 1, ...", flag_values=values)
    for name, default in defaults.items():
        values.set_default(name, default)
    return values


def define_data_flags(values: flags.FlagValues) -> None:
    """Adds the flags that say which text is read, and how."""

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    kinds = "plain text, .jsonl, .ndjson or .json, each also as .gz or .zst"
    define(define_path, "data", None, f"Text file or directory ({kinds}). Default: Python's standard library.")
    define(flags.DEFINE_string, "text_key", "text", "Key of the text in JSON objects.")
    define(flags.DEFINE_boolean, "skip_bad", False, "Leave out, and count, what cannot be read as text.")
    define(define_path, "tokenizer", None, "Hugging Face tokenizer.json. Default: bytes are the tokens.")
    flags.DEFINE_enum(
        "document_boundaries",
        "carry",
        BOUNDARIES,
        "carry: a sequence may hold several documents, and each sees those before it in the sequence, in training and "
        "in evaluation. reset: each document begins a sequence of its own and sees no other; the rest of its last "
        "sequence is padding, which the loss leaves out.",
        flag_values=values,
    )


def fixed_flags(values: flags.FlagValues) -> dict[str, Any]:
    """The flags that must be the same when a run is resumed, by name."""
    return {name: value for name, value in values.flag_values_dict().items() if name not in FREE_FLAGS}


def run_config(
    launcher_name: str, values: flags.FlagValues, data: TextData, configs: Mapping[str, LanguageModelConfig]
) -> dict[str, Any]:
    """The content of config.json, as `launcher.claim_workdir` takes it, and where the run's inputs are."""
    return {
        "launcher": launcher_name,
        "flags": fixed_flags(values),
        "data": data.fingerprint,
        "models": {name: config.to_json() for name, config in configs.items()},
        "inputs": inputs_of(values, data),
    }


def baselines_of(data: TextData) -> dict[str, float]:
    """Bits per byte of the test text by compressors that train no model of ours."""
    return {
        "gzip -9": gzip_bits_per_byte(data.test_text),
        "bigram": bigram_bits_per_byte(data.train_text, data.test_text),
    }


def text_of(values: flags.FlagValues, workdir: Path) -> TextData:
    """Reads the text that the flags name, and leaves out directories that hold runs; the same on all processes."""
    exclude = functools.partial(launcher.holds_run, workdir)
    data = load_text_data(values.data, values.tokenizer, values.text_key, exclude=exclude, skip_bad=values.skip_bad)
    agree({f"data ({name})": str(value)[:16] for name, value in data.fingerprint.items()})
    return data


def inputs_of(values: flags.FlagValues, data: TextData) -> dict[str, Any]:
    """The path of the text, and how much of it was read and skipped, for config.json and results.json."""
    read = None if data.summary is None else data.summary.as_json()
    return {**launcher.inputs_of(values), "read": read, "lost_share": data.lost_share}


def summary_of(values: flags.FlagValues, data: TextData) -> str:
    """One line about the text: how much was read, what the tokenizer loses, and how much padding there is."""
    parts = [f"text: {data.summary}"]
    if data.lost_share:
        parts.append(f"the tokenizer loses {data.lost_share:.2%} of the bytes")
    if values.document_boundaries == "reset":
        parts.append(f"{padding_share(data.train, values.seq_len):.1%} of the training positions are padding")
    return "; ".join(parts)


def configurations(values: flags.FlagValues, data: TextData) -> dict[str, LanguageModelConfig]:
    """The configuration of each model that the flags name."""
    # in generation attention sees as many tokens as in training
    shape = {"vocab_size": data.tokenizer.vocab_size, "context_length": values.seq_len}
    configs = {
        name: configuration(values, name, values.preset, **shape, **cms_fields(values, name)) for name in values.models
    }
    check_kernel(values, configs, parse_mesh(values.mesh))
    return configs


class Batches(NamedTuple):
    """The batches that all models of a run share."""

    train: Callable[..., grain.DatasetIterator]  # by ``seed``, which decides their order
    validation: EvaluationSet
    test: EvaluationSet


def batches_of(values: flags.FlagValues, data: TextData, mesh: jax.sharding.Mesh) -> Batches:
    """The batches of the sizes that the flags say; those for training have the rows that this process' devices hold.

    Raises:
        InputError: the text is shorter than a sequence.
    """
    shape: dict[str, Any] = {name: values[name].value for name in ("seq_len", "document_boundaries")}
    rows = local_rows(mesh, values.batch_size)
    train = functools.partial(train_iterator, data.train, batch_size=values.batch_size, **shape, rows=rows)
    train(seed=0)  # raises where the text is too short
    sizes = evaluation_sizes(values)
    validation = evaluation_batches(data.validation, **sizes, max_tokens=VALIDATION_TOKENS)
    return Batches(train, validation, test=evaluation_batches(data.test, **sizes))


def evaluation_sizes(values: flags.FlagValues) -> dict[str, Any]:
    """The sizes of `evaluation_batches`: with as many rows as a microbatch, evaluation needs no more than training."""
    shape = {name: values[name].value for name in ("seq_len", "document_boundaries")}
    return {"batch_size": values.batch_size // values.accumulate, **shape}


def optimizer_of(config: LanguageModelConfig, values: flags.FlagValues, rate_factor: float = 1.0) -> LevelOptimizers:
    """The optimizers of all levels by the flags, with both learning rates multiplied by a factor."""
    return make_optimizer(**optimizer_arguments(values, rate_factor), cms_periods=config.optimizer_periods)


def schedule_of(config: LanguageModelConfig, values: flags.FlagValues) -> str:
    """Describes the levels that train a model, and when each is updated, as text."""
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
    """Trains one model in ``workdir/run``, or resumes its training there.

    Args:
        run: name of the run, such as "hope/seed_0".
        config: configuration of the model.
        batches: from `batches_of`.
        values: the flags.
        workdir: directory of all runs.
        mesh: the devices.
        seed: decides the initial parameters and the order of the data.
        start: a model whose parameters replace the initial ones of the same path.
        rate_factor: multiplies both learning rates.
    """

    def init_model() -> LanguageModel:
        model = LanguageModel(config, rngs=nnx.Rngs(seed))
        known = {} if start is None else named_leaves(start)
        leaves = [known.get(path, leaf) for path, leaf in named_leaves(model).items()]
        return jax.tree.unflatten(jax.tree.structure(model), leaves)

    return fit(
        run,
        init_model,
        optimizer_of(config, values, rate_factor),
        batches.train(seed=seed),
        batches.validation,
        workdir=workdir,
        mesh=mesh,
        steps=values.steps,
        eval_every=values.eval_every,
        checkpoint_every=values.checkpoint_every,
        accumulate=values.accumulate,
        profile=values.profile,
    )


def check(values: flags.FlagValues) -> jax.sharding.Mesh:
    """Checks the flags that need no data, sets learning rates that are not given, and makes the mesh.

    Several processes join each other between the checks and the mesh.
    """
    for name in ("steps", "batch_size", "seq_len", "eval_every", "checkpoint_every", "accumulate"):
        launcher.check_range(values, name, 1)
    if "seed" in values:
        launcher.check_range(values, "seed", 0, 2**31 - 1)
    set_default_rates(values)
    if "models" in values:
        launcher.check_names("models", values.models, MODEL_NAMES, required=True)
    hosts = hosts_of(values)
    processes = 1 if hosts is None else hosts.num_processes
    if values.mesh is None:
        if values.batch_size % processes:
            raise InputError(
                f"--batch_size={values.batch_size}: expected a multiple of the {processes} processes that share it"
            )
        use_cpu_cores(max(1, values.batch_size // (processes * values.accumulate)))
    if values.profile is not None:
        launcher.check_range(values, "profile", 1, values.steps)
    if hosts is not None:
        free = {name: values[name].value for name in ("mesh", "accumulate", "kernel", "checkpoint_every")}
        same = {f"--{name}": value for name, value in {**fixed_flags(values), **free}.items()}
        join_hosts(hosts, values.start_timeout, {**same, **launcher.versions()})
    mesh = parse_mesh(values.mesh)
    check_batch_size(values, mesh)
    check_split(values, mesh)
    return mesh


def check_split(values: flags.FlagValues, mesh: jax.sharding.Mesh) -> None:
    """Raises `InputError` unless the mesh can split the sequences."""
    parts = mesh.shape["sequence"]
    if values.seq_len % parts:
        raise InputError(f"--seq_len={values.seq_len}: expected a multiple of {parts}, among which the mesh splits it")
    if parts > 1 and ("cms_regime" not in values or values.cms_regime != "outer"):
        raise InputError(
            f"--mesh={values.mesh}: a CMS that learns in context reads whole sequences; expected no axis sequence"
        )
