"""Restores a model that ``experiments.language_model`` has trained, from its workdir alone."""

from pathlib import Path
from typing import Any

import jax
from absl import flags
from flax import nnx

from experiments.common import launcher
from experiments.common.path_flags import define_path
from nl_jax import InputError
from nl_jax.data import Tokenizer, load_tokenizer
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.training import Checkpoint, restore_newest

RUN = "language_model"  # the launcher whose runs are restored


def define_tokenizer_flag(values: flags.FlagValues) -> None:
    """Adds the flag --tokenizer, for launchers that restore a run."""
    text = "The run's tokenizer.json, if it has moved since training."
    define_path("tokenizer", None, text, flag_values=values)


def chosen_model(values: flags.FlagValues) -> tuple[Path, dict[str, Any], Tokenizer]:
    """Directory, configuration and tokenizer of the model of --workdir and --model; `InputError` if there is none."""
    workdir = launcher.workdir_of(values)
    config = launcher.read_config(workdir, RUN)
    if config is None:
        raise InputError(f"--workdir={workdir}: no run there; expected a workdir of experiments.language_model")
    name = values.model or next(iter(config["models"]))
    if name not in config["models"]:
        raise InputError(f"--model={name}: not in this run; expected one of {', '.join(config['models'])}")
    return workdir / name, config["models"][name], tokenizer_of(workdir, config, values.tokenizer)


def tokenizer_of(workdir: Path, config: dict[str, Any], moved: str | None = None) -> Tokenizer:
    """The tokenizer with which a run was trained; raises `InputError` if the content of its file has changed.

    ``moved`` is its path, where that is not the one that the run was given.
    """
    path = moved or config.get("inputs", config["flags"])["tokenizer"]
    tokenizer = load_tokenizer(path)
    trained_with = config["data"].get("tokenizer", tokenizer.digest)  # earlier versions did not record it
    if tokenizer.digest != trained_with:
        raise InputError(
            f"tokenizer {path!r}: of SHA-256 {tokenizer.digest:.12}..., but the run in {workdir} was trained with "
            f"{trained_with:.12}...; expected that file, by --tokenizer where it is elsewhere"
        )
    return tokenizer


def shapes_of(config: LanguageModelConfig) -> LanguageModel:
    """The model with shapes in place of arrays; raises `InputError` if this version cannot build such a model."""
    try:
        return jax.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    except ValueError as error:
        raise InputError(f"the run's model cannot be built by this version: {error}") from error


def restore(directory: Path, config: dict[str, Any]) -> LanguageModel:
    """The model of the newest checkpoint, on one device; ``config`` is the JSON of a `LanguageModelConfig`."""
    return newest_checkpoint(directory, config).items["model"]


def newest_checkpoint(directory: Path, config: dict[str, Any]) -> Checkpoint:
    """The newest checkpoint that can be read, with the model alone, for `restore`."""
    shapes = shapes_of(LanguageModelConfig.from_json(config))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    checkpoint = restore_newest(directory, {"model": template})
    if checkpoint is None:
        raise InputError(f"{directory}: no checkpoint yet; expected one of experiments.language_model")
    return checkpoint
