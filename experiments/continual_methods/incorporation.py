"""Knowledge incorporation: documents, questions about them, and the ways in which a model takes a document up."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from nl_jax import InputError
from nl_jax.data.examples import Example, read_examples, sentences
from nl_jax.data.library_docs import library_docs
from nl_jax.data.tokenizer import begin_ids, ids_of
from nl_jax.models import LanguageModel
from nl_jax.pretrained import Pretrained, StackedLevel
from nl_jax.streaming import ContinualLearner
from nl_jax.streaming.answers import likeliest, read_prefix
from nl_jax.streaming.own_questions import Shown, as_question, before_questions, document_levels, self_questions
from nl_jax.streaming.questions import answered
from nl_jax.tasks.facts import ANSWERS, invented_facts

EXAMPLES_SEED = 1_000_003  # of the facts in the examples before every question
VALIDATION_SEED = 2_000_003  # of the document on which settings are chosen
ROOM = 64  # tokens of a question and its answer
Setting = dict[str, Any]
Pair = tuple[str, str]  # a question and its answer


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
    texts = [sentence for paragraph in paragraphs for sentence in sentences(paragraph)]
    if not texts:
        raise InputError(f"{text}: rows with labels; expected text")
    rows = read_examples(questions, text_column="question", label_column="answer")
    pairs = [row for row in rows if not isinstance(row, str)]
    if not pairs:
        raise InputError(f"{questions}: no column 'answer'; expected rows with question and answer")
    answers = tuple(dict.fromkeys(answer for _, answer in pairs))
    return Document(tuple(texts), tuple(Question(*pair, answers) for pair in pairs))


def examples() -> list[Shown]:
    """One example of each kind of fact, about other people and places."""
    facts = {fact.kind: fact for fact in invented_facts(EXAMPLES_SEED, 40, 1)}.values()
    return [Shown(fact.statements[0], fact.question, fact.answer) for fact in facts]


def asked_itself(pretrained: Pretrained, document: Document, seed: int) -> list[Pair]:
    """Questions about a document which the model asks itself, with the answers that it gives with the text in view."""
    return self_questions(pretrained.model, pretrained.tokenizer, document.texts, examples(), seed=seed)


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
        self._tokenizer = pretrained.tokenizer
        end = self._encode("\n")
        prompts = [self._encode(as_question(question.text)) for question in document.questions]
        length = -(-max(map(len, prompts)) // 8) * 8
        # blank lines make all prompts equally long, so that they are read by one program
        self._prompts = [end[-1:] * (length - len(prompt)) + prompt for prompt in prompts]
        self._answers = [[*self._encode(f" {question.answer}"), *end] for question in document.questions]

    def prefix(self, in_context: bool) -> list[int]:
        """The tokens before every question."""
        texts = self.document.texts if in_context else ()
        return [*begin_ids(self._tokenizer), *self._encode(before_questions(examples(), texts))]

    def tokens_in_context(self) -> int:
        """Number of tokens that a model reads when the document stands before a question."""
        return len(self.prefix(in_context=True)) + max(map(len, self._prompts)) + max(map(len, self._answers))

    def _encode(self, text: str) -> list[int]:
        return ids_of(self._tokenizer, text)

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
        self._seen: dict[Any, Any] = {}  # by what levels own: what they have seen of them

    def protect(self, learner: ContinualLearner) -> None:
        """Lets the levels of a new learner see the protected texts.

        That takes minutes, so all learners whose levels own the same weights share what the first of them has seen.
        """
        own = tuple((level.name, level.blocks, level.matrices, level.units) for level in learner.levels)
        if own not in self._seen:
            learner.protect(self.protected)
            self._seen[own] = jax.block_until_ready(learner.snapshot())
        learner.rollback(self._seen[own])

    def perplexity(self, pretrained: Pretrained, model: LanguageModel) -> float:
        """Of the held-out texts, per token."""
        reader = ContinualLearner(model, pretrained.tokenizer, chunk=256, batch_size=len(self.held_out))
        return float(np.exp(reader.score(self.held_out).loss))


class Method(NamedTuple):
    """A way in which a model takes up a document."""

    levels: Callable[[int, Setting], list[StackedLevel]]  # of the number of blocks and a setting
    settings: tuple[Setting, ...] = ()
    like: str | None = None  # the method whose chosen setting is taken over: a control differs in one thing only
    asks: bool = True  # whether it learns the answers to its own questions, or else the sentences
    protects: bool = False  # whether the levels see other text before


def _middle(blocks: int, setting: Setting) -> list[StackedLevel]:
    return [replace(level, **setting) for level in document_levels(blocks)]


def _all(blocks: int, setting: Setting) -> list[StackedLevel]:
    matrices = ("gate", "up", "down")
    return [StackedLevel("all", blocks=tuple(range(blocks)), matrices=matrices, rule="adam", **setting)]


PRECONDITIONED = tuple({"learning_rate": rate} for rate in (100.0, 50.0, 200.0))
ADAM = tuple({"learning_rate": rate} for rate in (1e-4, 3e-5, 3e-4))
METHODS = {
    "levels": Method(_middle, PRECONDITIONED, protects=True),
    "levels_unprotected": Method(_middle, like="levels"),
    "levels_text": Method(_middle, PRECONDITIONED, asks=False, protects=True),
    "fine_tuned": Method(_all, ADAM),
    "fine_tuned_text": Method(_all, ADAM, asks=False),
}


def read_document_by(
    name: str,
    setting: Setting,
    pretrained: Pretrained,
    learned: Sequence[Example],
    other: OtherText,
    passes: int,
    seed: int,
    told: Callable[[int, dict[str, float]], None],
) -> tuple[LanguageModel, float]:
    """The model after it has learned a document by the method ``name``, and the seconds that this took.

    It learns ``learned`` (the sentences, or for a method that ``asks`` its questions with their answers) ``passes``
    times, each time in another order. ``told`` gets the number of each pass, and its loss and surprise.
    """
    method, model = METHODS[name], pretrained.model
    learner = ContinualLearner(
        model,
        pretrained.tokenizer,
        method.levels(model.config.num_layers, setting),
        chunk=256,
        batch_size=8,
        question=as_question("{text}"),
        before=before_questions(examples()) if method.asks else "",
    )
    if method.protects:
        other.protect(learner)
    learner.batch_size = 16  # sentences and questions are short
    started = time.perf_counter()
    for number in range(passes if learned else 0):
        order = np.random.default_rng((seed, number)).permutation(len(learned))
        found = learner.learn([learned[i] for i in order])
        surprise = {f"surprise/{name}": value for name, value in found.surprise.items()}
        told(number + 1, {"loss": found.loss, **surprise})
    return learner.model, time.perf_counter() - started
