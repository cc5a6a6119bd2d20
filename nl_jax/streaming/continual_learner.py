"""A continual learner: a pre-trained model that goes on learning from texts and labelled examples, and is asked."""

import dataclasses
import functools
import json
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.data import Tokenizer
from nl_jax.data.examples import Example, check_characters
from nl_jax.data.tokenizer import begin_ids, begin_tokens, ids_of
from nl_jax.errors import InputError
from nl_jax.files import local_path
from nl_jax.levels import ScheduleState
from nl_jax.models.language_model import LanguageModel
from nl_jax.pretrained.level_stacking import Chunk, Pull, Rates, stack_levels
from nl_jax.pretrained.stacked_level import StackedLevel
from nl_jax.streaming import saved
from nl_jax.streaming.answers import likeliest, read_prefix, repeated
from nl_jax.streaming.batches import cut, grouped, stacked
from nl_jax.streaming.generation import checked_sampling, sample, with_room
from nl_jax.streaming.learning import (
    AT_ONCE,
    changed,
    diverged,
    learn_batches,
    learn_chunk,
    losses_of,
    protect_chunk,
    sparing_rates,
    squared_gradients,
    started,
    unrated,
)
from nl_jax.streaming.together import written_lines
from nl_jax.trees import content_digest, named_leaves

FORMAT = 1
QUESTION = "{text}\nlabel:"  # what an answer follows; the answer starts with a space


class Learned(NamedTuple):
    """The result of `ContinualLearner.learn`."""

    examples: int
    tokens: int  # number of targets
    loss: float  # nats per target, each predicted before it was learned; NaN without targets
    surprise: dict[str, float]  # by level: mean norm of the gradient of a chunk
    updated: dict[str, int]  # by level: number of updates


class Score(NamedTuple):
    """The result of `ContinualLearner.score`."""

    loss: float  # nats per target; NaN without targets
    accuracy: float  # of the labels of labelled examples, among all labels known; NaN without any
    tokens: int  # number of targets


class ContinualLearner:
    """A model and levels on it, which learn from a stream of texts and of labelled examples.

    A text is learned as text. Of a labelled example, ``question`` with the text is read, and the label after it is
    learned. What is held does not grow with the stream: the changes of the levels, and the labels' names.

    Args:
      model: a ``LanguageModel`` that does not learn in context, such as ``load_pretrained().model``.
      tokenizer: its tokenizer.
      levels: the levels; None takes `default_levels`.
      chunk: number of tokens after which what was read is learned; longer texts are cut, and remembered by the
        attention, up to the model's context length.
      batch_size: number of examples that are read together. They are learned in one step of the schedule.
      question: the format of a labelled example, with ``{text}`` in it.
      fill: the number of tokens to which shorter texts are filled up. Longer ones are filled up to a power of two, up
        to ``chunk``; each length is compiled.
      before: what the model reads before every example and question, and does not learn, such as other questions with
        their answers, so that it answers in their form. Answers then end with a line, and without it with the
        tokenizer's separator.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.data import ByteTokenizer
      >>> from nl_jax.models import named_config
      >>> model = LanguageModel(named_config("transformer", "tiny", num_layers=2), rngs=nnx.Rngs(0))
      >>> learner = ContinualLearner(model, ByteTokenizer(), [StackedLevel("fast", blocks=(1,), learning_rate=20.0)])
      >>> for _ in range(20):
      ...     learned = learner.learn([("the sky", "blue"), ("the grass", "green")])
      >>> learner.predict(["the sky", "the grass"])
      ['blue', 'green']
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        levels: Sequence[StackedLevel] | None = None,
        *,
        chunk: int = 128,
        batch_size: int = 16,
        question: str = QUESTION,
        fill: int = 16,
        before: str = "",
    ):
        if "{text}" not in question:
            raise InputError(f"question={question!r}: expected '{{text}}' in it, where the text of an example stands")
        for name, value in (("chunk", chunk), ("batch_size", batch_size), ("fill", fill)):
            if not isinstance(value, int | np.integer) or value < 1:
                raise InputError(f"{name}={value!r}: expected an integer of at least 1")
        for level in levels or ():
            if not isinstance(level, StackedLevel):
                raise InputError(f"level {reprlib.repr(level)}: expected a StackedLevel")
        if tokenizer.vocab_size > model.config.vocab_size:
            raise InputError(
                f"{tokenizer}: {tokenizer.vocab_size} tokens; expected at most the model's {model.config.vocab_size}"
            )
        self.tokenizer, self.chunk, self.batch_size, self.question = tokenizer, chunk, batch_size, question
        self.fill, self.before = fill, before
        self._stacked = stack_levels(model, default_levels(model) if levels is None else levels)
        self._state = self._stacked.init()
        self._before = [*begin_ids(tokenizer), *self._ids(before)] if before else []
        self.end = self._ids("\n")[-1] if before else tokenizer.separator_id  # the token that ends an answer
        self._kept_rates: dict[str, Rates] | None = None  # those of `_rates`, until what is protected changes
        self._labels: dict[str, list[int]] = {}  # tokens of every label that was learned
        self.notes: dict[str, Any] = {}  # JSON of the caller's, which is saved and loaded with what was learned
        self.pull: dict[str, Pull] | None = None  # by level, what `learn` pulls changes back to; it is not saved

    @property
    def levels(self) -> tuple[StackedLevel, ...]:
        """The levels."""
        return self._stacked.levels

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels learned so far, in the order in which they came."""
        return tuple(self._labels)

    @property
    def model(self) -> LanguageModel:
        """The model with all that was learned in its weights."""
        return changed(self._stacked.model, unrated(self.levels), self._state)

    def learn(self, examples: Sequence[Example]) -> Learned:
        """Reads and learns texts and labelled examples, in their order.

        Raises:
          Diverged: if a chunk gives a loss or a level that is not finite; the state before that chunk is kept.
        """
        examples = _checked(examples)
        for example in examples:
            if not isinstance(example, str):
                self._labels.setdefault(example[1], self._answer(example[1]))
        model, before = self._prefixed(examples, self.batch_size)
        program = (model, unrated(self.levels), self._rates())
        progress, count, step = started(self._state), 0, int(self._state.step)
        for group in grouped(self._chunks(examples), AT_ONCE):
            count += sum(int(np.sum(chunk.mask)) for chunks in group for chunk in chunks)
            if len(group[0]) == 1:
                batches = stacked([chunks[0] for chunks in group], AT_ONCE)
                progress = learn_batches(*program, progress, batches, len(group), self.pull, before)
                continue
            mixers = before
            for i, chunk in enumerate(group[0]):
                keep = i + 1 < len(group[0])
                if not np.any(chunk.mask):  # the beginning of long questions, which is no update
                    learned = changed(model, program[1], progress.state)
                    mixers = losses_of(learned, chunk._replace(state=mixers), keep)[1]
                    continue
                progress, mixers = learn_chunk(*program, progress, chunk._replace(state=mixers), keep, self.pull)
        self._state = progress.state
        finite, good, chunks, nats, surprise = jax.device_get(progress[1:])
        if not good:
            raise diverged(step + int(chunks), finite)
        updated = {level.name: (step + int(chunks)) // level.period - step // level.period for level in self.levels}
        mean = {name: float(value) / int(chunks) for name, value in surprise.items()} if chunks else {}
        return Learned(len(examples), count, float(nats) / count if count else float("nan"), mean, updated)

    def protect(self, texts: Sequence[Example]) -> None:
        """Reads texts the answers to which later learning should not change; nothing is learned from them.

        Levels that are "preconditioned" or protect add the texts' inputs to their covariance: `StackedModel.protect`.
        """
        for chunks in self._chunks(_checked(texts)):
            mixers = None
            for chunk in chunks:
                program = (self._stacked.model, unrated(self.levels))
                self._state, mixers = protect_chunk(*program, self._state, chunk._replace(state=mixers))
        self._kept_rates = None

    def importance(self, examples: Sequence[Example]) -> dict[str, Any]:
        """How much the loss of examples depends on each element of each level's change, by level and matrix.

        It is the mean over examples of the squared gradient: the diagonal of the empirical Fisher matrix. With ``pull``
        it makes elastic weight consolidation. Texts of more than a chunk count with their first chunk, labelled ones
        with the last.
        """
        examples = _checked(examples)
        texts = [self._one_chunk(example) for example in examples]
        model, before = self._prefixed(examples, 1)
        total, programs = None, (model, unrated(self.levels), self._state)
        for begin in range(0, len(texts), AT_ONCE):
            part = texts[begin : begin + AT_ONCE]
            found = squared_gradients(*programs, stacked(part, AT_ONCE), len(part), before)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        if total is None:
            raise InputError("no examples: expected at least one")
        return jax.tree.map(lambda leaf: leaf / len(texts), total)

    def predict(self, texts: Sequence[str], labels: Sequence[str] | None = None, *, batch_size: int = 32) -> list[str]:
        """The label of each text that the model finds most likely, among ``labels`` or all that it has learned.

        ``batch_size`` texts are read together.
        """
        for name, given in (("texts", texts), ("labels", labels)):
            if isinstance(given, str):
                raise InputError(f"{name}: one text; expected a list of texts")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected at least 1")
        known = self._labels if labels is None else {label: self._answer(label) for label in labels}
        if not known:
            raise InputError("no label was learned yet; expected labels=[...], or labelled examples first")
        prompts = [self._asked(text) for text in texts]
        found = likeliest(self.model, prompts, list(known.values()), batch_size=batch_size, prefix=self._before)
        names = list(known)
        return [names[i] for i in found.choice]

    def score(self, examples: Sequence[Example]) -> Score:
        """Loss and accuracy on examples, without learning from them."""
        examples = _checked(examples)
        nats, count = 0.0, 0.0
        model, before = self._prefixed(examples, self.batch_size)
        model = changed(model, unrated(self.levels), self._state)
        for chunks in self._chunks(examples):
            mixers = before
            for i, chunk in enumerate(chunks):
                losses, mixers = losses_of(model, chunk._replace(state=mixers), i + 1 < len(chunks))
                nats, count = nats + float(losses), count + float(np.sum(chunk.mask))
        pairs = [example for example in examples if not isinstance(example, str)]
        accuracy = float("nan")
        if pairs:
            labels = list(dict.fromkeys([*self._labels, *(label for _, label in pairs)]))
            found = self.predict([text for text, _ in pairs], labels)
            accuracy = float(np.mean([label == answer for (_, label), answer in zip(pairs, found, strict=True)]))
        return Score(nats / count if count else float("nan"), accuracy, int(count))

    def ask(self, prompt: str, **options: Any) -> str:
        """Continues a prompt; ``options`` are those of `nl_jax.streaming.generation.sample`."""
        ids, _ = self.tokenizer.encode(prompt.encode())
        return self.tokenizer.decode(np.asarray(list(sample(self.model, ids, **options)), int))

    def prompt(self, question: str) -> list[int]:
        """The tokens after which the model answers a question in the form of labelled examples."""
        return self._before + self._asked(question)

    def answer(self, questions: Sequence[str], *, num_tokens: int = 40, batch_size: int = 16) -> list[str]:
        """The answers to questions, token by token the likeliest ones, each at most a line or ``num_tokens`` long."""
        return written_lines(
            self.model,
            self.tokenizer,
            [self._asked(question) for question in questions],
            before=self._before,
            num_tokens=num_tokens,
            sampling=checked_sampling(0.0, None, 1.0, self._stacked.model.config.vocab_size),
            ends=(self.end,),
            batch_size=batch_size,
        )

    def snapshot(self) -> tuple[ScheduleState, dict[str, list[int]]]:
        """What was learned, for ``rollback``. It costs nothing, since arrays are never changed in place."""
        return self._state, dict(self._labels)

    def rollback(self, snapshot: tuple[ScheduleState, dict[str, list[int]]]) -> None:
        """Goes back to a snapshot."""
        self._state, self._labels, self._kept_rates = snapshot[0], dict(snapshot[1]), None

    def save(self, directory: str | Path) -> None:
        """Saves what was learned, without the model, in place of an earlier one.

        Raises:
          InputError: if the directory holds anything but a saved learner.
          StorageError: if it cannot be written; the earlier one stays.
        """
        saved.replace(local_path(directory), named_leaves(self._state), self._metadata())

    def load(self, directory: str | Path) -> None:
        """Takes over what was learned by a learner with the same model and levels.

        Raises:
          InputError: if there is none, or it belongs to another model or other levels; the message names the
            difference.
        """
        path = saved.newest(local_path(directory))
        metadata, own = saved.read_metadata(path), json.loads(json.dumps(self._metadata()))
        older = {"before": "", "parameters": own["parameters"]}  # where these are missing
        metadata["levels"] = [{"protects": False, **level} for level in metadata.get("levels", [])]
        for name in ("format", "model", "parameters", "tokenizer", "levels", "question", "before"):
            if metadata.get(name, older.get(name)) != own[name]:
                raise InputError(f"{path}: {name} {metadata.get(name)}; expected {own[name]}")
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), named_leaves(self._state))
        leaves = saved.read_state(path, template)
        structure = jax.tree.structure(self._state)
        self._state = jax.tree.unflatten(structure, [leaves[name] for name in named_leaves(self._state)])
        self._labels = {label: self._answer(label) for label in metadata["labels"]}
        self.notes, self._kept_rates = metadata.get("notes", {}), None

    def _rates(self) -> dict[str, Rates]:
        """The levels' rates, which are made anew after texts were protected, and then kept."""
        if self._kept_rates is None:
            self._kept_rates = sparing_rates(self.levels, self._state)
        return self._kept_rates

    def _metadata(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self._stacked.model.config.to_json(),
            "parameters": self._parameters,
            "tokenizer": self.tokenizer.digest,
            "levels": [dataclasses.asdict(level) for level in self.levels],
            "question": self.question,
            "before": self.before,
            "labels": list(self._labels),
            "notes": self.notes,
            "waiting": [],
            "frozen": [],
        }

    @functools.cached_property
    def _parameters(self) -> str:
        return content_digest(self._stacked.model)

    def _ids(self, text: str) -> list[int]:
        check_characters(text, f"text {reprlib.repr(text)}")
        return ids_of(self.tokenizer, text)

    def _asked(self, text: str) -> list[int]:
        """Tokens of a question, after others that make its length a multiple of 16: each length is compiled."""
        ids = self._ids(self.question.replace("{text}", text))
        if not self.before:
            ids = [*begin_tokens(self.tokenizer), *ids]
        return [self.end] * (16 - len(ids) % 16) + ids

    def _answer(self, label: str) -> list[int]:
        return [*self._ids(" " + label), self.end]

    def _prefixed(self, examples: Sequence[Example], batch_size: int) -> tuple[LanguageModel, Any]:
        """The model before its changes, with room for examples, and the state after ``before`` of the changed one."""
        model = self._stacked.model
        if not self._before or not examples:
            return model, None
        longest = max(len(self._row(example)[0]) for example in examples)
        model = with_room(model, len(self._before) + longest)
        learned = changed(model, unrated(self.levels), self._state)
        return model, repeated(read_prefix(learned, self._before, longest).state, batch_size)

    def _row(self, example: Example) -> tuple[list[int], int]:
        """Tokens of an example, and the number of those that are not learned."""
        if isinstance(example, str):
            begin = begin_ids(self.tokenizer)
            return [*begin, *self._ids(example), self.tokenizer.separator_id], len(begin)
        prompt = self._asked(example[0])
        return [*prompt, *self._answer(example[1])], len(prompt)

    def _one_chunk(self, example: Example) -> Chunk:
        """The first chunk of a text, or the last one of a labelled example, where its label is."""
        tokens, given = self._row(example)
        if not isinstance(example, str):
            left_out = max(0, len(tokens) - 1 - self.chunk)
            tokens, given = tokens[left_out:], max(1, given - left_out)
        return cut([(tokens, given)], 1, self.chunk, self.fill)[0]

    def _chunks(self, examples: Sequence[Example]) -> Iterator[list[Chunk]]:
        """The chunks of each batch of examples."""
        for begin in range(0, len(examples), self.batch_size):
            rows = [self._row(example) for example in examples[begin : begin + self.batch_size]]
            yield cut(rows, self.batch_size, self.chunk, self.fill)


def default_levels(model: LanguageModel) -> tuple[StackedLevel, ...]:
    """The levels that learned a stream of classes best: one, on the last MLPs (BUILD_NOTES.md, D79)."""
    last = tuple(range(-min(4, model.config.num_layers), 0))
    return (StackedLevel("fast", blocks=last),)


def _checked(examples: Sequence[Example]) -> list[Example]:
    if isinstance(examples, str) or not isinstance(examples, Iterable):
        what = "one text" if isinstance(examples, str) else f"{examples!r:.40}"
        raise InputError(f"examples: {what}; expected a list of texts, or of (text, label)")
    for example in examples:
        pair = isinstance(example, tuple | list) and len(example) == 2 and all(isinstance(x, str) for x in example)
        if not (isinstance(example, str) or pair):
            raise InputError(f"example {reprlib.repr(example)}: expected a text, or (text, label)")
    return list(examples)
