"""Text, a formal language and needles side by side: the subtasks on which variants of Hope are compared."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from experiments.eval_runs import hidden, language_subtasks, long_text
from experiments.eval_runs.evaluation import Subtask, scored
from experiments.eval_runs.text import BITS, PERPLEXITY, TINY, define_data_flag, text_of, text_subtask
from nl_jax import InputError

MIXED = ("language", "parity", "mk_1")
TIMES = {"x1": 1, "x2": 2}
SHOWN = {"bits per byte": BITS, "perplexity": PERPLEXITY, "Bin0": "bin0", "Bin1": "bin1"}
SHOWN |= {f"needles {name}": name for name in TIMES}
FLAGS = {
    "test_tokens": (65_536, "Tokens of the test text that are scored."),
    **language_subtasks.FLAGS,
    "max_length": (64, "Largest number of symbols of a string in training and in Bin0; the smallest is 2."),
    "long_length": (128, "Largest number of symbols of a string in Bin1, whose strings are all longer."),
    "test_strings": (300, "Strings of each bin, or all that there are."),
    **long_text.length_flags(longest=1024),
}
SMALL: dict[str, Any] = TINY | {"chunk_size": 32, "learning_rates": ["3e-3"]}
DEPARTURES = (
    "strings of parity that choose rates and steps are others than those of the test",
    "one of four needles in a haystack, trained on the task itself at --length tokens, as in evals.niah",
)
# Text alone, at a quarter of the parameters: so nine rows with three seeds should take an hour on two cores.
HOUR = SMALL | {"subtasks": ["language"], "width": 64, "parameters": 250_000, "test_tokens": 32_768, "steps": 100}


def mixed_subtasks(values: flags.FlagValues, window: int) -> dict[str, Subtask]:
    """The subtasks of ``--subtasks``; ``window`` is the number of tokens of a window of text."""
    made: dict[str, Callable[[], Subtask]] = {
        "language": functools.partial(_text, values, window),
        "parity": functools.partial(_parity, values),
        "mk_1": lambda: scored(hidden.niah_subtasks(values, TIMES, ["mk_1"])["mk_1"], "accuracy"),
    }
    return {name: made[name]() for name in values.subtasks}


def check_lengths(values: flags.FlagValues, variants: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises `InputError` for texts that levels which learn from them cannot read: they read whole periods."""
    flags_of = {"language": ("window",), "parity": ("max_length", "long_length"), "mk_1": ("length",)}
    chosen = [variants[name] for name in values.models if "cms_regime" in variants.get(name, {})]
    period = math.lcm(*(min(fields["cms_periods"]) for fields in chosen))
    for flag in (flag for subtask in values.subtasks for flag in flags_of[subtask]):
        length: Any = values[flag].value
        if length % period:
            raise InputError(f"--{flag}={length}: expected a multiple of {period}, the levels' period")


def _text(values: flags.FlagValues, window: int) -> Subtask:
    return scored(text_subtask(text_of(values.data), values, window, values.test_tokens), BITS, lower=True)


def _parity(values: flags.FlagValues) -> Subtask:
    subtask = language_subtasks.subtasks(values, ["parity"], own_validation=True)["parity"]
    return scored(subtask, "both", options={"allow_neg_eigval": True})


def define_mixed_flags(values: flags.FlagValues) -> None:
    """Adds --data, --haystack and --tokenizer."""
    define_data_flag(values)
    long_text.define_text_flags(values)


def data_of(values: flags.FlagValues) -> dict[str, Any]:
    """Identifies the texts of a run."""
    return {"text": text_of(values.data).fingerprint, **long_text.data_of(values)}
