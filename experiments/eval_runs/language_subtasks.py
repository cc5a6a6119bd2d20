"""The subtasks of formal languages: fixed training strings, and two bins of test strings, the second of longer ones."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.common import launcher
from experiments.eval_runs.batches import TEST_SEED, VALIDATION_SEED, padded, reading, split
from experiments.eval_runs.evaluation import Batch, Figures, Subtask
from nl_jax import InputError
from nl_jax.evaluation import accuracies
from nl_jax.tasks import LANGUAGES, formal_language_batch
from nl_jax.tasks.formal_languages import number_of_strings

SHORTEST = 2
TRAINING_SEED = 0  # of the training strings: all seeds of a model see the same, in another order
UNIQUE = ("parity", "shuffle_2", "shuffle_2_interleaved")  # training strings without repeats
SYMBOLS_OF = {"anbn": 2, "anbncn": 3}  # whose windows are of n
VOCABULARY = max(language.vocabulary for language in LANGUAGES.values())  # of all models: one program serves several
FLAGS = {
    "max_length": (50, "Largest number of symbols (of counters n) in training and in Bin0; the smallest is 2."),
    "long_length": (100, "Largest number of symbols (of counters n) in Bin1, whose strings are all longer."),
    "train_strings": (10_000, "Strings of training."),
    "test_strings": (2_000, "Strings of each bin, or all that there are."),
}
# Languages whose strings are as long stand side by side, so that one program serves them in turn.
NAMES = ("parity", "aa", "abab", "shuffle_2", "shuffle_2_interleaved", "anbn", "anbncn")
PAPER_NAMES = tuple(name for name in NAMES if name != "shuffle_2_interleaved")


def subtasks(
    values: flags.FlagValues, names: Sequence[str] | None = None, *, own_validation: bool = False
) -> dict[str, Subtask]:
    """The subtasks by name, those of ``--subtasks`` unless given; `InputError` for windows with too few strings.

    ``own_validation`` takes other strings for validation; without it they are those of the test, as in the source.
    """
    launcher.check_range(values, "max_length", 8)
    launcher.check_range(values, "long_length", values.max_length + 4)
    launcher.check_range(values, "train_strings", values.batch_size)
    chosen = values.subtasks if names is None else names
    return {name: _subtask(name, values, own_validation) for name in chosen}


def _subtask(name: str, values: flags.FlagValues, own_validation: bool) -> Subtask:
    whole, bins = strings_of(name, values)
    factor = 3 if name in SYMBOLS_OF else 1
    lengths = factor * values.max_length, factor * values.long_length
    training = reading(padded(whole, lengths[0]))
    per_epoch = len(training["inputs"]) // values.batch_size

    @functools.lru_cache(maxsize=1)
    def order(seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(len(training["inputs"]))

    def batch(seed: int, step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        rows = order(seed, epoch)[place * values.batch_size :][: values.batch_size]
        return {key: array[rows] for key, array in training.items()}

    def figures_on(bins: Sequence[Batch]) -> Callable[[Any, jax.sharding.Mesh], Figures]:
        batches = [list(split(reading(padded(strings, lengths[1])), 128)) for strings in bins]

        def figures(model: Any, mesh: jax.sharding.Mesh) -> Figures:
            short, long = (accuracies(model, rows, mesh).sequences for rows in batches)
            return {"bin0": short, "bin1": long, "both": (short + long) / 2}

        return figures

    test = figures_on(bins)
    validate = figures_on(_others(name, values, [whole, *bins])) if own_validation else test
    return Subtask({"vocab_size": VOCABULARY, "context_length": lengths[1]}, batch, validate, test)


def _others(name: str, values: flags.FlagValues, known: Sequence[Batch]) -> list[Batch]:
    """Validation strings of both bins, none of which is among those that are known."""

    def keys(strings: Batch) -> list[bytes]:
        counts = strings["mask"].sum(axis=1).astype(int)
        return [row[:count].tobytes() for row, count in zip(strings["inputs"], counts, strict=True)]

    seen, bins = {key for strings in known for key in keys(strings)}, []
    for step, window in enumerate(_windows(values)):
        size = min(values.test_strings, number_of_strings(name, window))
        strings = formal_language_batch(
            name, VALIDATION_SEED, step, batch_size=size, window=window, distinct=name in UNIQUE
        )
        rows = [row for row, key in enumerate(keys(strings)) if key not in seen]
        if not rows:
            raise InputError(f"--test_strings={values.test_strings}: no string of {name} is left for validation")
        bins.append({key: array[rows] for key, array in strings.items()})
    return bins


def _windows(values: flags.FlagValues) -> tuple[tuple[int, int], tuple[int, int]]:
    """The lengths of Bin0 and of Bin1."""
    return (SHORTEST, values.max_length), (values.max_length + 1, values.long_length)


def strings_of(name: str, values: flags.FlagValues) -> tuple[Batch, list[Batch]]:
    """The training strings and those of Bin0 and Bin1; raises `InputError` if there are too few."""
    windows = _windows(values)
    counts = [min(values.test_strings, number_of_strings(name, window)) for window in windows]

    def drawn(seed: int, step: int, size: int, window: tuple[int, int], distinct: bool = True) -> Batch:
        return formal_language_batch(name, seed, step, batch_size=size, window=window, distinct=distinct)

    if name == "parity":  # one list without repeats is cut, so that Bin0 is new to the model
        strings = drawn(TRAINING_SEED, 0, values.train_strings + counts[0], windows[0])
        parts = slice(values.train_strings), slice(values.train_strings, None)
        training, short = ({key: array[part] for key, array in strings.items()} for part in parts)
    else:
        training = drawn(TRAINING_SEED, 0, values.train_strings, windows[0], name in UNIQUE)
        short = drawn(TEST_SEED, 0, counts[0], windows[0])
    return training, [short, drawn(TEST_SEED, 1, counts[1], windows[1])]
