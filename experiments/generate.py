"""Continues a prompt with a model that experiments.language_model has trained, and prints the text as it comes.

    python -m experiments.generate --workdir=runs/first --prompt="def "

This uses the newest checkpoint, so it works while training still runs. The model reads each token once: its memory is
passed from token to token as state. A model whose continuum memory learns in context keeps learning.
"""

import itertools
import sys

from absl import flags

from experiments.common import launcher
from experiments.common.path_flags import define_path
from experiments.common.restoring import chosen_model, define_tokenizer_flag, restore
from nl_jax import InputError
from nl_jax.data import decode_stream
from nl_jax.streaming.generation import sample
from nl_jax.training.loop import CHECKPOINTS


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()
    define_path("workdir", None, "Directory of a run of experiments.language_model. Required.", flag_values=values)
    flags.DEFINE_string("prompt", "", "Text to continue; if empty, a new document begins.", flag_values=values)
    flags.DEFINE_string("model", None, "One of the run's models; by default the first.", flag_values=values)
    define_tokenizer_flag(values)
    flags.DEFINE_integer("num_tokens", 400, "Tokens to add, unless the document ends earlier.", flag_values=values)
    flags.DEFINE_float(
        "temperature", 0.8, "Below 1 sharpens the distribution; 0 takes the likeliest token.", flag_values=values
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
    except UnicodeEncodeError as error:  # Python decodes arguments in another encoding to surrogates
        raise InputError("--prompt: not UTF-8; expected UTF-8 text") from error
    directory, config, tokenizer = chosen_model(values)
    model = restore(directory / CHECKPOINTS, config)

    ids = tokenizer.encode(prompt)[0].tolist()
    options = {"num_tokens": values.num_tokens, "temperature": values.temperature, "seed": values.seed}
    try:
        tokens = sample(model, [tokenizer.separator_id, *ids], **options)
    except ValueError as error:  # the tokenizer is not that of the model
        raise InputError(f"--prompt: {error}") from error
    print(values.prompt, end="", flush=True)
    document = itertools.takewhile(lambda token: token != tokenizer.separator_id, tokens)
    for text in decode_stream(tokenizer, document, context=ids):
        print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(main())
