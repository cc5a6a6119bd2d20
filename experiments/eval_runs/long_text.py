"""Tasks that hide something in a long text: their tokens, training batches, and greedy answers after long prompts."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jaxtyping import Int32

from experiments.common.path_flags import define_path
from experiments.eval_runs.batches import TEST_SEED, VALIDATION_SEED, accuracy_of
from experiments.eval_runs.evaluation import Batch, Figures, Subtask
from nl_jax import InputError
from nl_jax.data import Tokenizer, load_tokenizer
from nl_jax.data.library_docs import library_docs
from nl_jax.evaluation.streamed import PART, greedy_answers
from nl_jax.tasks import WordTokenizer, in_parts
from nl_jax.tasks.niah import split_sentences
from nl_jax.tasks.word_tokenizer import common_words

COMMON = 500  # words of the text that are in the closed vocabulary, beside those of the task
# Of both launchers' presets. At these, Hope finds a needle after 100 steps, and answers qa1 after 400 to 600.
SIZES = {"batch_size": 16, "chunk_size": 16, "eval_every": 50, "steps": 400}
SMALL = SIZES | {"seeds": 1, "learning_rates": ["3e-3"]}
# Retention that starts at 0.9997 a token leaves 0.007 of a fact after 16,384 tokens.
NO_FORGETTING = {name: {"mixer_options": {"alpha": 1.0}} for name in ("hope", "titans")}
LONGEST = "longest"  # the test that has a number of questions of its own
TOGETHER = 16  # prompts that are read side by side
VALIDATION_BATCHES = 4
PACKS = (1, 2, 4)  # shorter texts in a row of a training batch, one after the other, where they fit
ATTENTION = 16_384  # tokens that attention sees at most


LENGTHS = {
    "length": (256, "Tokens of prompt and answer in training."),
    "longest": (4096, "Tokens of prompt and answer in the longest test."),
    "samples": (64, "Questions of each test but the longest."),
    "longest_samples": (8, "Questions of the longest test."),
}  # flags: default and help


def length_flags(longest: int) -> dict[str, tuple[int, str]]:
    """`LENGTHS` with another default of ``--longest``."""
    return LENGTHS | {"longest": (longest, LENGTHS["longest"][1])}


class Question(NamedTuple):
    """A prompt that a model reads, and what it should answer."""

    prompt: Callable[[], Iterable[Int32[np.ndarray, " part"]]]  # all prompts of a length have as many tokens
    answer: Sequence[int]  # its tokens, without the end
    grade: Callable[[str], float]  # of the answer that a model gives, in per cent


class Source(NamedTuple):
    """The text that surrounds what is hidden, and the tokenizer of all."""

    text: str
    tokenizer: Tokenizer

    def encode(self, text: str) -> np.ndarray:
        """The token ids of a text."""
        return self.tokenizer.encode(text.encode())[0]


@functools.cache
def _documentation() -> str:
    return "\n".join(library_docs(10**6))


@functools.cache
def source_of(haystack: str | None, tokenizer: str | None, words: frozenset[str]) -> Source:
    """The text of a file, or Python's documentation, and its tokenizer; ``words`` are those of the task.

    Raises:
        InputError: if a file cannot be read.
    """
    own = None if tokenizer is None else load_tokenizer(None if Path(tokenizer).name == "bytes" else tokenizer)
    try:
        text = _documentation() if haystack is None else Path(haystack).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"--haystack={haystack}: cannot be read as UTF-8 text ({error})") from error
    return Source(text, own or WordTokenizer([*words, *common_words(text, COMMON)]))


def define_text_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the text and of its tokens."""
    text = "File with the text around what is hidden, such as a book. Default: Python's own documentation."
    define_path("haystack", None, text, flag_values=values)
    text = "A tokenizer.json file, or the word bytes. Default: a closed vocabulary of words."
    define_path("tokenizer", None, text, flag_values=values)


def data_of(values: flags.FlagValues) -> dict[str, str]:
    """Identifies the text and the tokenizer of a run."""
    source = source_of(values.haystack, values.tokenizer, frozenset())
    text = hashlib.sha256(source.text.encode()).hexdigest()
    return {"haystack": text, "tokenizer": source.tokenizer.digest}


def sentences_of(source: Source) -> list[np.ndarray]:
    """The token ids of each sentence of the text."""
    return [source.encode(sentence) for sentence in split_sentences(source.text)]


def subtask(
    question: Callable[[int, int, int], Question],
    source: Source,
    values: flags.FlagValues,
    *,
    lengths: dict[str, int],
    room: int,
) -> Subtask:
    """A subtask that trains on fresh questions, and is tested on ``--samples`` questions of each length.

    The rows of a training batch have in turn one text, two of half the length, and four of a quarter. Short texts are
    learned first, and a row of several has as many answers. Validation and test have whole texts only.

    Args:
        question: ``question(seed, index, length)`` returns a question whose prompt has ``length - room`` tokens.
        source: text and tokenizer.
        values: the flags ``length``, of prompt and answer in training, ``batch_size``, ``samples`` and
            ``longest_samples``.
        lengths: tokens of prompt and answer in tests, by the name of the test's figure.
        room: tokens of an answer, its end included.

    Raises:
        InputError: if the length is too short for the task.
    """
    end, most = source.tokenizer.separator_id, max(PACKS)

    def batch(seed: int, step: int, packs: Sequence[int] = PACKS) -> Batch:
        def texts(row: int) -> list[Question]:
            index = step * values.batch_size + row
            try:
                count = packs[row % len(packs)]
                return [question(seed, most * index + i, values.length // count) for i in range(count)]
            except InputError:  # too short for it
                return [question(seed, most * index, values.length)]

        return _batch([texts(row) for row in range(values.batch_size)], values.length, room, end)

    @functools.cache
    def test_questions(name: str) -> list[Question]:
        count = values.longest_samples if name == LONGEST else values.samples
        return [question(TEST_SEED, index, lengths[name]) for index in range(count)]

    def test(model: Any, mesh: jax.sharding.Mesh) -> Figures:
        with jax.set_mesh(mesh):
            return {name: _graded(model, test_questions(name), source, room, size) for name, size in lengths.items()}

    @functools.cache
    def validation() -> list[Batch]:
        return [batch(VALIDATION_SEED, step, (1,)) for step in range(VALIDATION_BATCHES)]

    def validate(model: Any, mesh: jax.sharding.Mesh) -> Figures:
        return accuracy_of(validation())(model, mesh)

    question(VALIDATION_SEED, 0, values.length)  # raises an error where nothing fits
    seen = min(max(lengths.values()), ATTENTION)
    sizes = {"vocab_size": source.tokenizer.vocab_size, "context_length": seen}
    return Subtask(sizes, batch, validate, test)


def _batch(rows: Sequence[Sequence[Question]], length: int, room: int, end: int) -> Batch:
    """Inputs, targets and mask. After each prompt come the answer and its end, the targets, and ends up to ``room``.

    A model that learns in context learns from all texts, as it does from the prompts of a test.
    """
    tokens = np.full((len(rows), length + 1), end, np.int32)
    mask, inside = np.zeros((2, len(rows), length), np.float32)
    for row, questions in enumerate(rows):
        at = 0
        for prompt, answer, _ in questions:
            ids = np.concatenate([*prompt(), [*answer, end][:room]])
            stop = at + len(ids)
            tokens[row, at:stop] = ids
            mask[row, stop - min(len(answer) + 1, room) - 1 : stop - 1] = 1.0
            inside[row, at : stop - 1] = 1.0
            at += length // len(questions)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "mask": mask, "read_mask": inside}


def _graded(model: Any, questions: Sequence[Question], source: Source, room: int, length: int) -> float:
    """The mean grade of a model's greedy answers."""
    grades = []
    for begin in range(0, len(questions), TOGETHER):
        part = questions[begin : begin + TOGETHER]
        filled = [part[i % len(part)] for i in range(min(TOGETHER, len(questions)))]  # each size is compiled
        texts = in_parts((question.prompt() for question in filled), PART)
        ends = (source.tokenizer.separator_id,)
        answers = greedy_answers(model, texts, num_tokens=room, ends=ends, length=length)
        grades += [
            question.grade(source.tokenizer.decode(np.asarray(answer, int)))
            for question, answer in zip(part, answers, strict=False)
        ]
    return float(np.mean(grades))
