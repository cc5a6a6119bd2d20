"""Knowledge incorporation: documents, questions about them, and the ways in which a model takes a document up."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nl_jax import InputError
from nl_jax.data.examples import read_examples
from nl_jax.data.library_docs import library_docs
from nl_jax.models import LanguageModel
from nl_jax.pretrained import Pretrained, StackedLevel
from nl_jax.streaming import ContinualLearner
from nl_jax.streaming.answers import likeliest, read_prefix
from nl_jax.streaming.questions import answered
from nl_jax.tasks.facts import ANSWERS, invented_facts

EXAMPLES_SEED = 1_000_003  # of the facts in the examples before every question
VALIDATION_SEED = 2_000_003  # of the document on which settings are chosen
ROOM = 64  # tokens of a question and its answer
Setting = dict[str, Any]


class Question(NamedTuple):
    """A question about a document."""

    text: str
    answer: str
    choices: tuple[str, ...]  # what the model chooses from, the answer among them


class Document(NamedTuple):
    """A document, and questions about it."""

    texts: tuple[str, ...]  # its sentences
    questions: tuple[Question, ...]


def generated(seed: int, facts: int, statements: int) -> Document:
    """A document about invented people and places; each fact's sentences follow one another."""
    found = invented_facts(seed, facts, statements)
    questions = tuple(Question(fact.question, fact.answer, ANSWERS[fact.kind]) for fact in found)
    return Document(tuple(text for fact in found for text in fact.statements), questions)


def read_document(text: str, questions: str) -> Document:
    """The user's own document, cut into sentences, and questions from rows with ``question`` and ``answer``.

    Raises:
        InputError: for a file that cannot be read, or a row without one of them; the message names file and column.
    """
    paragraphs = [paragraph for paragraph in read_examples(text) if isinstance(paragraph, str)]
    sentences = [part for paragraph in paragraphs for part in re.split(r"(?<=[.!?])\s+", paragraph) if part.strip()]
    if not sentences:
        raise InputError(f"{text}: rows with labels; expected text")
    rows = read_examples(questions, text_column="question", label_column="answer")
    pairs = [row for row in rows if not isinstance(row, str)]
    if not pairs:
        raise InputError(f"{questions}: no column 'answer'; expected rows with question and answer")
    answers = tuple(dict.fromkeys(answer for _, answer in pairs))
    return Document(tuple(sentences), tuple(Question(*pair, answers) for pair in pairs))


class Exam:
    """Questions about a document, which a model answers with the document in context or without it.

    Before every question stand the same examples: short texts about other invented people and places, and questions
    about these with their answers, so that a model answers in the form of the answers.

    Args:
        pretrained: the model's tokenizer and ids.
        document: the document.
    """

    def __init__(self, pretrained: Pretrained, document: Document):
        self.document = document
        example = {fact.kind: fact for fact in invented_facts(EXAMPLES_SEED, 40, 1)}.values()
        self._facts = " ".join(fact.statements[0] for fact in example)
        self._shown = "".join(_asked(fact.question) + f" {fact.answer}\n\n" for fact in example)
        self._encode, self._start = pretrained.encode, pretrained.tokenizer.separator_id
        end = self._encode("\n")
        prompts = [self._encode(_asked(question.text)) for question in document.questions]
        length = -(-max(map(len, prompts)) // 8) * 8
        # blank lines make all prompts equally long, so that they are read by one program
        self._prompts = [end[-1:] * (length - len(prompt)) + prompt for prompt in prompts]
        self._answers = [[*self._encode(f" {question.answer}"), *end] for question in document.questions]

    def prefix(self, in_context: bool) -> list[int]:
        """The tokens before every question."""
        text = " ".join(self.document.texts) if in_context else ""
        return [self._start, *self._encode(f"{self._facts} {text}\n\n{self._shown}")]

    def answers(self, model: LanguageModel, in_context: bool = False) -> dict[str, Any]:
        """What the model answers: ``exact`` (greedy) and ``chosen`` of all choices, by question, and mean ``nats``."""
        longest = max(map(len, self._prompts)) + max(map(len, self._answers))
        prefix = read_prefix(model, self.prefix(in_context), max(ROOM, longest + 16))
        found = answered(prefix, self._prompts, self._answers)
        chosen = np.zeros(len(self._prompts), bool)
        kinds = [question.choices for question in self.document.questions]
        for names in dict.fromkeys(kinds):
            rows = [row for row, own in enumerate(kinds) if own == names]
            choices = [[*self._encode(f" {name}"), *self._encode("\n")] for name in names]
            best = likeliest(model, [self._prompts[row] for row in rows], choices, batch_size=8, prefix=prefix)
            for row, index in zip(rows, best[0], strict=True):
                chosen[row] = names[index] == self.document.questions[row].answer
        return {"exact": found.exact.tolist(), "chosen": chosen.tolist(), "nats": float(found.nats.mean())}


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


class OtherText:
    """Texts about other things: some whose perplexity says what learning has cost, others to protect.

    Args:
        size: number of each.
    """

    def __init__(self, size: int):
        texts = library_docs()
        order = np.random.default_rng(0).permutation(len(texts))
        self.held_out = [texts[i] for i in order[:size]]
        self.protected = [texts[i] for i in order[size : 3 * size]]
        self._seen: dict[str, Any] = {}  # by method: what its levels have seen of them

    def protect(self, learner: ContinualLearner, name: str) -> None:
        """Lets the levels of a new learner see the protected texts.

        That takes minutes, so all learners of the method ``name`` share what the first of them has seen.
        """
        if name not in self._seen:
            learner.protect(self.protected)
            self._seen[name] = jax.block_until_ready(learner.snapshot())
        learner.rollback(self._seen[name])

    def perplexity(self, pretrained: Pretrained, model: LanguageModel) -> float:
        """Of the held-out texts, per token."""
        reader = ContinualLearner(model, pretrained.tokenizer, chunk=256, batch_size=len(self.held_out))
        return float(np.exp(reader.score(self.held_out).loss))


class Method(NamedTuple):
    """A way in which a model takes up a document."""

    levels: Callable[[int, Setting], list[StackedLevel]]  # of the number of blocks and a setting
    settings: tuple[Setting, ...]
    protects: bool = False  # whether the levels see other text before


def _middle(blocks: int, setting: Setting) -> list[StackedLevel]:
    first, last = round(0.27 * blocks), round(0.6 * blocks)
    return [StackedLevel("middle", blocks=tuple(range(first, max(last, first + 1))), **setting)]


def _last(blocks: int, setting: Setting) -> list[StackedLevel]:
    return [StackedLevel("last", blocks=tuple(range(-min(4, blocks), 0)), **setting)]


def _all(blocks: int, setting: Setting) -> list[StackedLevel]:
    matrices = ("gate", "up", "down")
    return [StackedLevel("all", blocks=tuple(range(blocks)), matrices=matrices, rule="adam", **setting)]


# With ridge 1 and learning rate 100 other text's perplexity rises by 169 %, with ridge 0.1 and rate 10 by 0.7 %
# (SmolLM2-135M, 12 facts, 6 passes).
PRECONDITIONED = tuple({"learning_rate": rate, "ridge": 0.1} for rate in (30.0, 10.0, 60.0))
METHODS = {
    "levels": Method(_middle, PRECONDITIONED, protects=True),
    "levels_unprotected": Method(_middle, PRECONDITIONED),
    "levels_last": Method(_last, PRECONDITIONED, protects=True),
    "fine_tuned": Method(_all, ({"learning_rate": 1e-4}, {"learning_rate": 3e-4}, {"learning_rate": 3e-5})),
}


def read_document_by(
    name: str,
    setting: Setting,
    pretrained: Pretrained,
    texts: Sequence[str],
    other: OtherText,
    passes: int,
    seed: int,
    told: Callable[[int, dict[str, float]], None],
) -> tuple[LanguageModel, float]:
    """The model after it has read the texts some times by the method ``name``, and the seconds of reading.

    Each time they come in another order. ``told`` gets the number of each pass, and its loss and surprise.
    """
    method, model = METHODS[name], pretrained.model
    levels = method.levels(model.config.num_layers, setting)
    learner = ContinualLearner(model, pretrained.tokenizer, levels, chunk=256, batch_size=8)
    if method.protects:
        other.protect(learner, name)
    learner.batch_size = 16  # sentences are short
    started = time.perf_counter()
    for number in range(passes):
        order = np.random.default_rng((seed, number)).permutation(len(texts))
        learned = learner.learn([texts[i] for i in order])
        surprise = {f"surprise/{name}": value for name, value in learned.surprise.items()}
        told(number + 1, {"loss": learned.loss, **surprise})
    return learner.model, time.perf_counter() - started
