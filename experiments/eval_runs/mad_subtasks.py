"""The subtasks of MAD: a generator for each task, whose sizes are flags."""

from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags

from experiments.common import launcher
from experiments.eval_runs.batches import TEST_SEED, VALIDATION_SEED, accuracy_of, padded
from experiments.eval_runs.evaluation import Batch, Subtask
from nl_jax import InputError, tasks
from nl_jax.models import AutoEncoder

BATCH = 128  # sequences of a test batch, as in MAD: the accuracy of ids is computed over each
VALIDATION_BATCHES, TEST_BATCHES = 4, 10
MEMORIZATION_STEPS = 400  # at most, as in MAD


class Task(NamedTuple):
    """A task of MAD.

    Attributes:
        generator: gives its batches.
        flag: the flag with its number of tokens, or that number.
        vocab_size: ids of its models.
        retargets: whether its tests have other targets than training.
    """

    generator: Callable[..., Batch]
    flag: str | int
    vocab_size: int
    retargets: bool = False


# Recall and copying have models with the ids of noisy recall, so that one program serves all of equal length.
TASKS = {
    "compression": Task(tasks.compression_batch, "compressed", 16),
    "recall": Task(tasks.in_context_recall_batch, "seq_len", 32, True),
    "noisy_recall": Task(tasks.noisy_recall_batch, "seq_len", 32, True),
    "fuzzy_recall": Task(tasks.fuzzy_recall_batch, "seq_len", 32, True),
    "copying": Task(tasks.selective_copying_batch, "copying_len", 32),
    "memorization": Task(tasks.memorization_batch, 32, 256),
}
FLAGS = {
    "seq_len": (64, "Tokens of a sequence of the recall tasks, even; MAD's number is 128."),
    "copying_len": (64, "Tokens of a sequence of selective copying; MAD's number is 256."),
    "copied": (8, "Symbols that selective copying repeats; MAD's number is 16."),
    "compressed": (32, "Tokens of a sequence of compression, as in MAD."),
}


def subtasks(values: flags.FlagValues) -> dict[str, Subtask]:
    """The subtasks by name; raises `InputError` for sizes below what a task needs."""
    launcher.check_range(values, "seq_len", 18)
    launcher.check_range(values, "copying_len", 2 * values.copied + 1)
    launcher.check_range(values, "compressed", 2)
    if values.seq_len % 2:
        raise InputError(f"--seq_len={values.seq_len}: expected an even number")
    return {name: _subtask(name, values) for name in values.subtasks}


def _subtask(name: str, values: flags.FlagValues) -> Subtask:
    task = TASKS[name]
    length = task.flag if isinstance(task.flag, int) else int(getattr(values, task.flag))
    sizes: dict[str, Any] = {"seq_len": length} | ({"copied": values.copied} if name == "copying" else {})

    def make(seed: int, step: int, size: int, **target: bool) -> Batch:
        return padded(task.generator(seed, step, batch_size=size, **sizes, **target), length)

    def held_out(seed: int, count: int) -> list[Batch]:
        target = {"test": True} if task.retargets else {}
        return [make(seed, step, BATCH, **target) for step in range(count)]

    return Subtask(
        {"vocab_size": task.vocab_size, "context_length": length},
        lambda seed, step: make(seed, step, values.batch_size),
        accuracy_of(held_out(VALIDATION_SEED, VALIDATION_BATCHES)),
        accuracy_of(held_out(TEST_SEED, TEST_BATCHES)),
        steps=min(values.steps, MEMORIZATION_STEPS) if name == "memorization" else None,
        build=AutoEncoder if name == "compression" else None,
    )
