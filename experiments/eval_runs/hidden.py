"""The subtasks of the launchers ``niah`` and ``babilong``: what is hidden in a long text."""

import collections
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments.common import launcher
from experiments.eval_runs.evaluation import Figures, Subtask
from experiments.eval_runs.long_text import LONGEST, Question, sentences_of, source_of, subtask
from nl_jax.evaluation import label_is_right, substring_score
from nl_jax.tasks import LABELS, babi, babi_story, babilong_sample, niah, niah_sample

EXAMPLES = {"numbers": "1234567", "uuids": "0a3f9c1e-12ab-4cd3-8ef0-abcdef012345"}
STORIES = 2000  # of which the most frequent label is found


def niah_subtasks(
    values: flags.FlagValues, times: dict[str, int], names: Sequence[str] | None = None
) -> dict[str, Subtask]:
    """Subtasks of RULER's needles, tested at multiples of the training length by name of the figure, and ``LONGEST``.

    ``names`` are those of ``--subtasks`` unless given.

    Raises:
        InputError: for lengths that are too short, or files that cannot be read.
    """
    lengths = _lengths(values, times)
    return {name: _niah(values, name, lengths) for name in (values.subtasks if names is None else names)}


def _niah(values: flags.FlagValues, name: str, lengths: dict[str, int]) -> Subtask:
    source = source_of(values.haystack, values.tokenizer, niah.WORDS)
    essay = source.text.split()

    def sample(seed: int, index: int, length: int, room: int) -> niah.Sample:
        def count(text: str) -> int:
            return len(source.encode(text))

        return niah_sample(seed, index, name, length=length, count=count, essay=essay, generated=room)

    def question(seed: int, index: int, length: int) -> Question:
        prompt, answers = sample(seed, index, length, room)
        tokens = source.encode(prompt)
        left = np.full(length - room - len(tokens), source.tokenizer.separator_id, np.int32)
        text = source.encode(f" {', '.join(answers)}").tolist()
        parts = [np.concatenate([left, tokens])]
        return Question(lambda: parts, text, lambda output: 100 * substring_score(output, answers))

    rules = niah.VARIANTS[name]
    example = source.encode(f" {', '.join([EXAMPLES[rules.value]] * rules.values * rules.queries)}")
    # tokens of a vocabulary that is not of this project hold more or fewer digits
    spare = 0 if source.tokenizer.digest in ("words", "bytes") else len(example) // 4
    room = len(example) + spare + 1
    return subtask(question, source, values, lengths=lengths, room=room)


def babilong_subtasks(values: flags.FlagValues, times: dict[str, int]) -> dict[str, Subtask]:
    """Subtasks of BABILong; arguments and errors as for `niah_subtasks`."""
    lengths = _lengths(values, times)
    return {name: _babilong(values, name, lengths) for name in values.subtasks}


def _babilong(values: flags.FlagValues, name: str, lengths: dict[str, int]) -> Subtask:
    source = source_of(values.haystack, values.tokenizer, babi.WORDS)
    room = 1 + max(len(source.encode(f" {label}")) for label in LABELS[name])
    background = sentences_of(source)

    def question(seed: int, index: int, length: int) -> Question:
        size = length - room
        story, _, text = babilong_sample(seed, index, name, length=size, encode=source.encode, background=background)

        def grade(output: str) -> float:
            return 100.0 * label_is_right(output, story.answer, LABELS[name], story.question)

        return Question(text, source.encode(f" {story.answer}").tolist(), grade)

    return subtask(question, source, values, lengths=lengths, room=room)


def most_frequent_label(values: flags.FlagValues, figures: Sequence[str]) -> dict[str, dict[str, Figures]]:
    """The accuracy, in per cent, of the label that is most often right, of each subtask of BABILong at all lengths."""
    found = {}
    for name in values.subtasks:
        counts = collections.Counter(babi_story(0, index, name).answer for index in range(STORIES))
        found[name] = dict.fromkeys(figures, 100 * max(counts.values()) / STORIES)
    return {"most frequent label": found}


def _lengths(values: flags.FlagValues, times: dict[str, int]) -> dict[str, int]:
    launcher.check_range(values, "longest", max(times.values()) * values.length)
    return {name: factor * values.length for name, factor in times.items()} | {LONGEST: values.longest}
