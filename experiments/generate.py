"""Continues a prompt with a model that experiments.language_model has trained, and prints the text as it comes.

    python -m experiments.generate --workdir=runs/first --prompt="def "

The newest checkpoint is used, so this works while the training still runs. The model reads each token once: its memory
is carried from token to token as state. One whose continuum memory learns in context goes on learning.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from flax import nnx

from experiments import language_model, launcher
from experiments.path_flags import define_path
from nl_jax import InputError
from nl_jax.data import Tokenizer, decode_stream, load_tokenizer
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.models.sampling import sample
from nl_jax.training import restore_newest
from nl_jax.training.loop import CHECKPOINTS


def define_flags() -> flags.FlagValues:
    """The flags, not yet parsed."""
    values = flags.FlagValues()
    define_path("workdir", None, "Directory of a run of experiments.language_model. Required.", flag_values=values)
    flags.DEFINE_string("prompt", "", "Text to continue; empty begins a document.", flag_values=values)
    flags.DEFINE_string("model", None, "One of the run's models; without it the first.", flag_values=values)
    define_tokenizer_flag(values)
    flags.DEFINE_integer("num_tokens", 400, "Tokens to add, unless the document ends before.", flag_values=values)
    flags.DEFINE_float(
        "temperature", 0.8, "Below 1 sharpens the distribution; 0 takes the likeliest.", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "Decides the sample.", flag_values=values)
    return values


def define_tokenizer_flag(values: flags.FlagValues) -> None:
    """For launchers that read a run's tokenizer."""
    text = "The run's tokenizer.json, where it is no longer where the run found it."
    define_path("tokenizer", None, text, flag_values=values)


def main(argv: list[str] | None = None) -> int:
    return launcher.run(generate, define_flags(), __doc__, argv)


def generate(values: flags.FlagValues) -> None:
    """Prints the prompt and its continuation."""
    launcher.check_range(values, "num_tokens", 1)
    launcher.check_range(values, "temperature", 0)
    launcher.check_range(values, "seed", 0, 2**31 - 1)
    try:
        prompt = values.prompt.encode("utf-8")
    except UnicodeEncodeError as error:  # what Python makes of arguments in another encoding
        raise InputError("--prompt: not UTF-8; expected UTF-8 text") from error
    directory, config, tokenizer = chosen_model(values)
    model = restore(directory / CHECKPOINTS, config)

    ids = tokenizer.encode(prompt)[0].tolist()
    options = {"num_tokens": values.num_tokens, "temperature": values.temperature, "seed": values.seed}
    try:
        tokens = sample(model, [tokenizer.separator_id, *ids], **options)
    except ValueError as error:  # the tokenizer's tokens are not this model's
        raise InputError(f"--prompt: {error}") from error
    print(values.prompt, end="", flush=True)
    document = itertools.takewhile(lambda token: token != tokenizer.separator_id, tokens)
    for text in decode_stream(tokenizer, document, context=ids):
        print(text, end="", flush=True)
    print()


def chosen_model(values: flags.FlagValues) -> tuple[Path, dict[str, Any], Tokenizer]:
    """Directory, configuration and tokenizer of the model that --workdir and --model name; `InputError` for none."""
    workdir = launcher.workdir_of(values)
    config = launcher.read_config(workdir, language_model.NAME)
    if config is None:
        raise InputError(f"--workdir={workdir}: no run there; expected a workdir of experiments.language_model")
    name = values.model or next(iter(config["models"]))
    if name not in config["models"]:
        raise InputError(f"--model={name}: not in this run; expected one of {', '.join(config['models'])}")
    return workdir / name, config["models"][name], tokenizer_of(values, workdir, config)


def tokenizer_of(values: flags.FlagValues, workdir: Path, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a run was trained with; `InputError` where the file has another content by now."""
    path = values.tokenizer or config.get("inputs", config["flags"])["tokenizer"]
    tokenizer = load_tokenizer(path)
    trained_with = config["data"].get("tokenizer", tokenizer.digest)  # runs of earlier versions do not say
    if tokenizer.digest != trained_with:
        raise InputError(
            f"tokenizer {path!r}: of SHA-256 {tokenizer.digest:.12}..., but the run in {workdir} was trained with "
            f"{trained_with:.12}...; expected that file, by --tokenizer where it is elsewhere"
        )
    return tokenizer


def shapes_of(config: LanguageModelConfig) -> LanguageModel:
    """The model, with shapes in the place of arrays; `InputError` where this version has no such model."""
    try:
        return jax.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    except ValueError as error:
        raise InputError(f"the run's model cannot be built by this version: {error}") from error


def restore(directory: Path, config: dict[str, Any]) -> LanguageModel:
    """The model of the newest checkpoint, on one device; `config` is a `LanguageModelConfig` as JSON holds it."""
    shapes = shapes_of(LanguageModelConfig.from_json(config))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    checkpoint = restore_newest(directory, {"model": like})
    if checkpoint is None:
        raise InputError(f"{directory}: no checkpoint yet; expected one of experiments.language_model")
    return checkpoint.items["model"]


if __name__ == "__main__":
    sys.exit(main())
