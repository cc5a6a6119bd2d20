"""Methods of class-incremental learning that read labelled texts, and answer by the likelihood of the labels."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nl_jax import Diverged
from nl_jax.data.tokenizer import begin_tokens, ids_of
from nl_jax.pretrained import Pretrained
from nl_jax.pretrained.level_stacking import Pull
from nl_jax.pretrained.stacked_level import StackedLevel
from nl_jax.streaming.answers import PIECE, likeliest
from nl_jax.streaming.continual_learner import QUESTION, ContinualLearner

IMPORTANT = 64  # examples of a task by which elastic weight consolidation estimates what is important
Pair = tuple[str, str]  # a text and its label


def question_of(text: str) -> str:
    """What a label follows, as in what a learner reads."""
    return QUESTION.replace("{text}", text)


def example_of(text: str, label: str) -> str:
    """A text with its label, and the empty line before the next one."""
    return f"{question_of(text)} {label}\n\n"


class TextLearner:
    """Levels on a model, which learn each example of the stream once.

    Args:
        pretrained: the model and its tokenizer.
        levels: which weights learn, how often and by which rule.
        answered: number of texts that are answered together.
        batch: number of examples of a step.
        seed: of random draws.
    """

    tests_per_class: int | None = None  # a slow method answers no more test texts of a class

    def __init__(
        self, pretrained: Pretrained, levels: Sequence[StackedLevel], *, answered: int, batch: int = 16, seed: int = 0
    ):
        fill = 64 if answered > 32 else 16  # a program for each length costs more than filling up, on an accelerator
        self.learner = ContinualLearner(pretrained.model, pretrained.tokenizer, levels, batch_size=batch, fill=fill)
        self.answered, self.random, self.diverged = answered, np.random.default_rng((seed, 3)), 0

    def learn(self, examples: Sequence[Pair]) -> None:
        """Learns examples in their order."""
        try:
            self.learner.learn(examples)
        except Diverged:  # what was learned before is kept, and the stream goes on
            self.diverged += 1

    def end_task(self, examples: Sequence[Pair]) -> None:
        """Is told that all examples of a task have been learned."""

    def predict(self, texts: Sequence[str], labels: Sequence[str]) -> list[str]:
        """The likeliest of the labels for each text."""
        return self.learner.predict(texts, labels, batch_size=self.answered)

    @property
    def state(self) -> Any:
        """All arrays that the method keeps beside the model."""
        return self.learner.snapshot()[0]


class ZeroShot(TextLearner):
    """The model as it is."""

    tests_per_class = 2

    def learn(self, examples: Sequence[Pair]) -> None:
        """Learns nothing."""


class Replay(TextLearner):
    """Half of every batch is new, half is drawn from what is stored: of each class every ``every``-th, at least one."""

    def __init__(self, *args: Any, every: int, **options: Any):
        super().__init__(*args, **options)
        self.every, self.stored = every, list[Pair]()
        self.number: dict[str, int] = {}  # of examples seen, by class

    def learn(self, examples: Sequence[Pair]) -> None:
        """Learns examples in their order, among stored ones."""
        mixed: list[Pair] = []
        half = max(1, self.learner.batch_size // 2)
        for begin in range(0, len(examples), half):
            new = examples[begin : begin + half]
            mixed += new
            if self.stored:
                mixed += [self.stored[i] for i in self.random.integers(len(self.stored), size=len(new))]
            for text, label in new:
                if self.number.get(label, 0) % self.every == 0:
                    self.stored.append((text, label))
                self.number[label] = self.number.get(label, 0) + 1
        super().learn(mixed)


class Elastic(TextLearner):
    """Elastic weight consolidation: what was important for earlier tasks is pulled back to where it was after them."""

    def __init__(self, *args: Any, penalty: float, **options: Any):
        super().__init__(*args, **options)
        self.penalty = penalty

    def end_task(self, examples: Sequence[Pair]) -> None:
        """Adds what was important for a task, and moves the centre to the present weights."""
        some = [examples[i] for i in self.random.permutation(len(examples))[:IMPORTANT]]
        importance = self.learner.importance(some)
        levels, before = self.learner.snapshot()[0].levels, self.learner.pull
        self.learner.pull = {
            name: Pull(
                levels[name].change,
                jax.tree.map(lambda new, old: self.penalty * new + old, found, before[name].strength)
                if before
                else jax.tree.map(lambda new: self.penalty * new, found),
            )
            for name, found in importance.items()
        }

    @property
    def state(self) -> Any:
        """All arrays that the method keeps beside the model."""
        return super().state, self.learner.pull


class InContext(TextLearner):
    """The model reads examples of the stream before each text: as many as fit its window, of each class the newest."""

    tests_per_class = 2

    def __init__(self, pretrained: Pretrained, levels: Sequence[StackedLevel], *, answered: int, seed: int = 0):
        super().__init__(pretrained, levels, answered=max(1, answered // 8), seed=seed)
        self.model, self.tokenizer = pretrained.model, pretrained.tokenizer
        self.newest: dict[str, list[str]] = {}

    def learn(self, examples: Sequence[Pair]) -> None:
        """Keeps the newest examples of each class."""
        for text, label in examples:
            self.newest[label] = [*self.newest.get(label, [])[-15:], text]

    def predict(self, texts: Sequence[str], labels: Sequence[str]) -> list[str]:
        """The likeliest of the labels for each text."""
        prompts = [self._filled(self.encode(question_of(text))) for text in texts]
        answers = self.answers(labels)
        room = self.model.config.context_length - max(map(len, prompts)) - max(map(len, answers)) - PIECE
        found = likeliest(self.model, prompts, answers, batch_size=self.answered, prefix=self._prefix(room))
        return [labels[i] for i in found.choice]

    def _prefix(self, room: int) -> list[int]:
        """Examples in random order: one of each class, then a second one, as far as there is room."""
        chosen: list[str] = []
        room -= len(begin_tokens(self.tokenizer))
        for rank in range(1, 17):
            classes = [label for label, kept in self.newest.items() if len(kept) >= rank]
            for i in self.random.permutation(len(classes)):
                label = classes[i]
                example = example_of(self.newest[label][-rank], label)
                tokens = len(self.encode(example)) + 1  # together they can have more tokens than alone
                if tokens > room:
                    break
                chosen.append(example)
                room -= tokens
        text = "".join(chosen[i] for i in self.random.permutation(len(chosen)))
        # the end of the last one in the tokens that all others end in
        ids = [*begin_tokens(self.tokenizer), *self.encode(text.removesuffix("\n\n"))]
        ids += 2 * self.encode("\n") if text else []
        return [*self.encode("\n") * (-len(ids) % PIECE), *ids]

    def answers(self, labels: Sequence[str]) -> list[list[int]]:
        """The ids of each label after a question, up to the end of its line."""
        return [self.encode(f" {label}\n") for label in labels]

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return ids_of(self.tokenizer, text)

    def _filled(self, ids: list[int]) -> list[int]:
        """Ids after line ends that make their number a multiple of 16, since each length is compiled."""
        return [*self.encode("\n") * (-len(ids) % 16), *ids]

    @property
    def state(self) -> Any:
        """No arrays: the window is read anew."""
        return ()
