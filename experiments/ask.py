"""Asks a model that experiments.learn has taught: it answers, or names the label of a text.

    python -m experiments.ask --workdir=runs/mine --temperature=0 "The name of the captain is"
    python -m experiments.ask --workdir=runs/mine --classify "I lost my card"
    python -m experiments.ask --workdir=runs/mine --chat "What is a tokenizer?"

The words of the command line are the question, or else standard input is. With --classify this prints the label that
the model finds most likely, among all that it has learned or --labels; each line of standard input is a text. It works
while learning still runs, and reads what was saved last. A model that learned with --ask_itself is asked in the form
in which it has asked itself, unless --chat is given.
"""

import itertools
import sys
from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.common.learner_runs import OWN_MODEL, check_run, given_text, load_model, restored
from experiments.common.path_flags import define_path
from experiments.common.pretrained_flag import define_pretrained, models_of
from experiments.common.sampling_flags import define_sampling_flags, sampling_options
from experiments.common.words import WithWords
from nl_jax import InputError
from nl_jax.data import decode_stream, until_stop
from nl_jax.data.tokenizer import begin_ids, ids_of
from nl_jax.pretrained import Pretrained
from nl_jax.streaming import ContinualLearner
from nl_jax.streaming.generation import sample


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = WithWords("question")
    define_path("workdir", None, "Directory of a run of experiments.learn. Required.", flag_values=values)
    define_pretrained(values, OWN_MODEL)
    flags.DEFINE_multi_string(
        "question", [], "The question; the words of the command line follow it.", flag_values=values
    )
    text = "Print the label of the text instead of an answer."
    flags.DEFINE_boolean("classify", False, text, flag_values=values)
    text = "Labels to choose from, with --classify. Default: all that were learned."
    flags.DEFINE_list("labels", [], text, flag_values=values)
    text = "Ask by the model's chat template, as a user."
    flags.DEFINE_boolean("chat", False, text, flag_values=values)
    flags.DEFINE_integer("num_tokens", 100, "Most tokens of an answer.", flag_values=values)
    define_sampling_flags(values)
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(ask, define_flags(), __doc__, argv)


def ask(values: flags.FlagValues) -> None:
    """Prints the answer, or the labels. All checks come before any compilation."""
    workdir = launcher.workdir_of(values)
    launcher.check_range(values, "num_tokens", 1)
    options = sampling_options(values)
    if values.labels and not values.classify:
        raise InputError(f"--labels={','.join(values.labels)}: expected --classify, which chooses a label")
    if values.chat and values.classify:
        raise InputError("--chat: given with --classify, which prints a label; expected one of them")
    stored = check_run(workdir)
    pretrained = load_model(values, stored)
    launcher.check_same(workdir, "models", stored["models"], models_of(pretrained))
    texts = _texts(values)
    learner = restored(workdir, pretrained, stored["flags"])
    if not values.classify:
        _answer(learner, pretrained, texts[0], values, options)
        return
    if not values.labels and not learner.labels:
        raise InputError(f"--labels: missing, and {workdir} has learned no labels; expected some of them")
    for label in learner.predict(texts, values.labels or None):
        print(label)


def _texts(values: flags.FlagValues) -> list[str]:
    """The question, or with --classify the texts."""
    try:
        words = " ".join(values.question).encode("utf-8").decode("utf-8")
        text = words or given_text("question").decode("utf-8")
    except UnicodeError as error:
        raise InputError("question: not UTF-8; expected UTF-8 text") from error
    return [line.strip() for line in text.split("\n") if line.strip()] if values.classify else [text]


def _answer(
    learner: ContinualLearner, pretrained: Pretrained, text: str, values: flags.FlagValues, options: dict[str, Any]
) -> None:
    separator, as_asked = pretrained.tokenizer.separator_id, bool(learner.before) and not values.chat
    if values.chat:
        ids = pretrained.encode(pretrained.chat([{"role": "user", "content": text}]), marked=True)
    elif as_asked:
        ids = learner.prompt(text)  # as the model has asked itself
    else:
        ids = [*begin_ids(pretrained.tokenizer), *ids_of(pretrained.tokenizer, text)]  # as texts are learned
    tokens = sample(learner.model, ids, num_tokens=values.num_tokens, **options)
    ends = (*pretrained.end_tokens, separator, *([learner.end] if as_asked else []))
    answer = itertools.takewhile(lambda token: token not in ends, tokens)
    begun = not as_asked  # such answers begin with a blank
    for piece in until_stop(decode_stream(pretrained.tokenizer, answer, context=ids), values.stop):
        print(piece if begun else piece.lstrip(), end="", flush=True)
        begun = begun or bool(piece.strip())
    print()


if __name__ == "__main__":
    sys.exit(main())
