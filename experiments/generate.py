"""Continues a prompt with a model that experiments.language_model has trained, and prints the text as it comes.

    python -m experiments.generate --workdir=runs/first --prompt="def "

The newest checkpoint is used, so this works while the training still runs. The model reads each token once: its memory
is carried from token to token as state. One whose continuum memory learns in context goes on learning.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx

from experiments import language_model, launcher
from nl_jax import InputError
from nl_jax.data import Tokenizer, load_tokenizer
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.models.sampling import sample
from nl_jax.training import restore_newest
from nl_jax.training.loop import CHECKPOINTS


def define_flags() -> flags.FlagValues:
    """The flags, not yet parsed."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "workdir", None, "Directory of a run of experiments.language_model. Required.", flag_values=values
    )
    flags.DEFINE_string("prompt", "", "Text to continue; empty begins a document.", flag_values=values)
    flags.DEFINE_string("model", None, "One of the run's models; without it the first.", flag_values=values)
    flags.DEFINE_integer("num_tokens", 400, "Tokens to add, unless the document ends before.", flag_values=values)
    flags.DEFINE_float(
        "temperature", 0.8, "Below 1 sharpens the distribution; 0 takes the likeliest.", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "Decides the sample.", flag_values=values)
    return values


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

    ids, _ = tokenizer.encode(prompt)
    options = {"num_tokens": values.num_tokens, "temperature": values.temperature, "seed": values.seed}
    try:
        tokens = sample(model, np.append(tokenizer.separator_id, ids), **options)
    except ValueError as error:  # the tokenizer's tokens are not this model's
        raise InputError(f"--prompt: {error}") from error
    print(values.prompt, end="", flush=True)
    for text in decode_stream(tokenizer, itertools.takewhile(lambda token: token != tokenizer.separator_id, tokens)):
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
    return workdir / name, config["models"][name], load_tokenizer(config["flags"]["tokenizer"])


def config_of(fields: dict[str, Any]) -> LanguageModelConfig:
    """A configuration as JSON holds it."""
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return LanguageModelConfig(**given)


def shapes_of(config: LanguageModelConfig) -> LanguageModel:
    """The model, with shapes in the place of arrays."""
    return jax.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))


def restore(directory: Path, config: dict[str, Any]) -> LanguageModel:
    """The model of the newest checkpoint, on one device; `config` is a `LanguageModelConfig` as JSON holds it."""
    shapes = shapes_of(config_of(config))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    checkpoint = restore_newest(directory, {"model": like})
    if checkpoint is None:
        raise InputError(f"{directory}: no checkpoint yet; expected one of experiments.language_model")
    return checkpoint.items["model"]


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Text of ids as they come, held back while a character is not complete."""
    read: list[int] = []
    start, end = 0, 0  # ids[start:end] are printed and kept, as how a token is spelled may depend on the one before
    for token in ids:
        read.append(token)
        before, text = tokenizer.decode(np.array(read[start:end], int)), tokenizer.decode(np.array(read[start:]))
        if not text.endswith("\ufffd"):
            yield text[len(before) :]
            start, end = end, len(read)
    yield tokenizer.decode(np.array(read[start:], int))[len(tokenizer.decode(np.array(read[start:end], int))) :]


if __name__ == "__main__":
    sys.exit(main())
